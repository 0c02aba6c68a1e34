"""From what a person types to something that can be measured: an artifact, a .gguf, an HF folder or a Hub
id."""

from benchmarks.speed import Target
from evals.subjects import Typed, resolve
from quantize.calibration.windows import context_length
from quantize.gguf.container.reader import read_gguf
from quantize.methods.registry import parse_recipe
from quantize.results import Subject


def find_target(name: str, load_as: str = "", code: bool = False) -> tuple[Target, Subject, Typed]:
    """``code``: of a model on the Hub its Python is fetched too.

    Errors: BadInput where nothing of that name can be opened; StepFailed where the Hub cannot be reached.
    """
    typed = resolve(name, parse_recipe(load_as) if load_as else None, code)
    typed.fetch()
    subject = typed.subject()
    size = subject.size_bytes or typed.size_bytes
    return Target(name, typed.path, size, typed.digest, load_as, trained_context(typed)), subject, typed


def trained_context(typed: Typed) -> int:
    """Tokens that the model was made for; 0 where its files do not say."""
    if typed.gguf:
        values = read_gguf(typed.gguf).kvs
        return int(values.get(f"{values.get('general.architecture')}.context_length") or 0)
    return context_length(typed.config)
