"""Engines whose packages do not go with ours: each in an environment of its own, spoken to through files."""
