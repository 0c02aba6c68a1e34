"""This program's own engine: weights streamed from the source's files, calibration layer by layer."""
