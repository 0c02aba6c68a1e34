"""Programs that open an artifact and give its logits and its text."""
