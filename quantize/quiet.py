"""Keep the libraries' own messages and progress bars off stdout and stderr: results and our progress are
there."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator

NOISY = (
    "transformers", "optimum", "bitsandbytes", "accelerate", "gptqmodel", "tokenicer", "torch", "torchao",
    "huggingface_hub",
    "datasets",
)  # fmt: skip


def hush() -> None:
    """Lower the libraries' loggers to errors and switch off transformers' progress bars, for the life of the
    process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that Python code inside prints, logs or warns of is seen. Exceptions pass; a failure is an
    exception."""
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        hush()
        yield


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """For forward passes, during which our own progress may be drawn: warnings only, no redirection."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
