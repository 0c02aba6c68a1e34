"""Where checkpoints come from: folders, hubs, GGUF files, adapters."""
