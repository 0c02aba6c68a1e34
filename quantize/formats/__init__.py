"""What lies on disk: one file for each format of artifacts."""
