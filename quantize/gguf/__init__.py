"""The GGUF format: its files, how model families map to it, its tokenizers, and its mixtures of types."""
