"""Runs: parties, carriers, run folders, resume."""
