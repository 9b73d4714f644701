"""The flags of the commands about answering together, each beside its call; importing them loads nothing heavy."""
