"""A run's record, its tables and figures."""
