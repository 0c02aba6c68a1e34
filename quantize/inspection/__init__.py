"""What a checkpoint or an artifact is, whoever made it, from its headers: no weight is read, nothing runs."""
