"""What all parties share, what never leaves a client, and the built-in playground."""
