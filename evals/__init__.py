"""Quality: perplexity by named protocols, divergence from a reference, task accuracy, and the statistics of
all three."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.measure import evaluate as evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    # imported when asked for: reports import quantize.results without numpy's weight behind it
    if name == "evaluate":
        from evals.measure import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
