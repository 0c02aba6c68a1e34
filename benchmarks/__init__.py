"""Speed and memory of artifacts."""
