"""Frames, messages and the Carrier protocol: pure, no files, no engine."""
