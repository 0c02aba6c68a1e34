"""Whether an artifact holds what its recipe says: its tensors, and its logits where it will be served."""
