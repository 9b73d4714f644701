"""Each paper's algorithm box told in the rooms' words, no engine in sight."""
