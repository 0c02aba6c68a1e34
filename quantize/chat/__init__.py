"""Chat templates: which ones a model has, and conversations rendered by them, out of process and within
limits."""
