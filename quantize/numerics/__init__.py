"""Pure functions on arrays: unpacking, rounding, clipping, comparing."""
