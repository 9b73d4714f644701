"""Which samples to learn, from which teacher."""
