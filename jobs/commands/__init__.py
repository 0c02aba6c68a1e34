"""The commands that stand on jobs, one file each."""
