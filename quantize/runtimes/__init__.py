"""Programs that open an artifact and produce its logits and its text."""
