"""Options that say how to run, which several commands share."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from quantize.recipe import RunOptions
from quantize.units import parse_size

F = TypeVar("F", bound=Callable[..., Any])


def run_options(command: F) -> F:
    """Add --device, --dtype, --threads, --memory and --trust-remote-code; the command gets one RunOptions as
    ``run``.

    --json is added too and arrives as ``as_json``.
    """

    @click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")
    @click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
    )
    @click.option(
        "--threads", type=click.IntRange(min=1), help="CPU threads (default: all available to this process)"
    )
    @click.option("--memory", help="memory limit of a step, e.g. 8GiB")
    @click.option(
        "--trust-remote-code",
        is_flag=True,
        help="run Python code from the checkpoint (recorded in the manifest)",
    )
    @click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
    @functools.wraps(command)
    def wrapper(
        device: str,
        dtype: Any,
        threads: int | None,
        memory: str | None,
        trust_remote_code: bool,
        **kwargs: Any,
    ) -> Any:
        run = RunOptions(
            device=device,
            dtype=dtype,
            threads=threads,
            memory_bytes=parse_size(memory) if memory else None,
            trust_remote_code=trust_remote_code,
        )
        apply_threads(run)
        return command(run=run, **kwargs)

    return wrapper  # type: ignore[return-value]


def apply_threads(run: RunOptions) -> None:
    """Tell the libraries how many threads to use; must run before they are imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(run.resolved_threads))
    # GPTQModel keeps two workers for reading files, and fails where its pool has fewer.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, run.resolved_threads)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if run.resolved_threads > 1 else "false")
    if run.threads and "torch" in sys.modules:
        import torch

        torch.set_num_threads(run.threads)
