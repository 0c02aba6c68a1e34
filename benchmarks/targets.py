"""From what a person types to something that can be measured: an artifact, a .gguf, an HF folder or a Hub id."""

from benchmarks.speed import Target
from evals.result import Subject
from evals.subjects import resolve
from quantize.recipe import parse_recipe


def find_target(name: str, load_as: str = "") -> tuple[Target, Subject]:
    """Errors: BadInput where nothing of that name can be opened; StepFailed where the Hub cannot be reached."""
    typed = resolve(name, parse_recipe(load_as) if load_as else None)
    subject = typed.subject()
    files = [path for path in typed.path.iterdir() if path.is_file()] if typed.path.is_dir() else [typed.path]
    size = subject.size_bytes or sum(path.stat().st_size for path in files)
    config = typed.config.get("text_config") or typed.config
    context = int(config.get("max_position_embeddings") or 0)
    return Target(name, typed.path, size, typed.digest, load_as, context), subject
