"""A source's tokenizer as GGUF metadata, and the check that llama.cpp splits texts the same way."""
