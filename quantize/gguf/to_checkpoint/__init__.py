"""A .gguf file as a Hugging Face checkpoint."""
