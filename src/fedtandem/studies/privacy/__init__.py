"""Studies of what private data give away and of clients that lie."""
