"""Ways to quantize: each joins a recipe, what lies on disk and the engine that makes it."""
