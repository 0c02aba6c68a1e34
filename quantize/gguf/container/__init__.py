"""Reading and writing .gguf files, whatever they hold."""
