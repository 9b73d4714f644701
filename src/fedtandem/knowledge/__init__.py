"""What is exchanged: top-K logits per token, cross-entropy per sample."""
