"""From one vocabulary and tokenisation to another: maps, aligned positions, transported logits."""
