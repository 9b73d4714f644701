"""Load a language model with its tokenizer; attach, save and restore adapters; the caches on disk."""
