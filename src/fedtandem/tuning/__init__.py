"""A party's fine-tuning of its adapter; never sees another party."""
