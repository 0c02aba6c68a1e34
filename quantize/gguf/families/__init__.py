"""Model families: which of a checkpoint's tensors become which of a GGUF file's, and how."""
