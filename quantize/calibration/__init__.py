"""Calibration texts, their windows, the pass over the layers, and what is collected on the way."""
