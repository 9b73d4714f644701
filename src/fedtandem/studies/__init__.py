"""Methods x seeds, and the statistics of their differences."""
