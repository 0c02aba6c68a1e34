"""What a calibration pass computes in, and how many threads it has."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.hf.products import multiplies_bfloat16, onednn_products, rounds_factors
from quantize.recipe import RunOptions


@dataclass(frozen=True)
class Arithmetic:
    """``dtype``: of weights and activations. ``onednn``: float32 products on a CPU are oneDNN's, which may
    round factors to bfloat16, where the processor multiplies such matrices, and adds in float32."""

    dtype: str
    onednn: bool = False

    @property
    def name(self) -> str:
        """As the manifest records it."""
        rounds = self.onednn and self.dtype == "float32" and rounds_factors()
        return f"{self.dtype}, factors of products rounded to bfloat16" if rounds else self.dtype

    @contextmanager
    def used(self, threads: int | None) -> Iterator[None]:
        """Settings of torch's, put back at the end."""
        import torch

        before = torch.get_num_threads()
        try:
            if threads:
                torch.set_num_threads(threads)
            with onednn_products(self.onednn):
                yield
        finally:
            torch.set_num_threads(before)


def arithmetic_of(run: RunOptions, source: Checkpoint | None = None) -> Arithmetic:
    """What ``run`` asks for; else float32 on a CPU, and bfloat16 on an accelerator.

    Computing in bfloat16 altogether, which rounds more than factors, changes the losses of layers by 2 in
    1,000. So on a CPU only what runs the model of ``source`` as it is does so, where the weights are that and
    the processor multiplies it.
    """
    cpu = run.resolved_device == "cpu"
    if run.dtype != "auto":
        return Arithmetic(run.dtype, cpu and run.dtype == "float32" and not rounds_factors())
    if source is not None and source.dtype == "BF16" and multiplies_bfloat16():
        return Arithmetic("bfloat16", onednn=cpu)
    return Arithmetic("float32", onednn=True) if cpu else Arithmetic("bfloat16")
