"""A Hugging Face checkpoint's folder: config, tensors, tokenizer, model card."""
