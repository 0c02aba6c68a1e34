"""What a calibration pass computes in, and how many threads it has."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from quantize.recipe import RunOptions

#: of a square product that shows whether factors are rounded: as large as those of small models
PROBE = 256


@dataclass(frozen=True)
class Arithmetic:
    """``dtype``: of weights and activations. ``onednn``: float32 products on a CPU are oneDNN's, which may
    round factors to bfloat16, where the processor multiplies such matrices, and adds in float32."""

    dtype: str
    onednn: bool = False

    @property
    def name(self) -> str:
        """As the manifest records it."""
        rounds = self.onednn and _rounds_factors()
        return f"{self.dtype}, factors of products rounded to bfloat16" if rounds else self.dtype

    @contextmanager
    def used(self, threads: int | None) -> Iterator[None]:
        """Settings of torch's, put back at the end."""
        import torch

        before = torch.get_num_threads()
        try:
            if threads:
                torch.set_num_threads(threads)
            with _products("bf16" if self.onednn else "ieee"):
                yield
        finally:
            torch.set_num_threads(before)


def arithmetic_of(run: RunOptions) -> Arithmetic:
    """What ``run`` asks for; else float32 on a CPU, and bfloat16 on an accelerator.

    oneDNN's products take half the time of MKL's on processors that are not Intel's, in float32 as exact as
    those (a SmolLM2-135M layer at 8,192 tokens on a Zen 5 core: 2.6 s and 4.9 s). Computing in bfloat16
    altogether, which rounds more than factors, changes the losses of layers by 2 in 1,000.
    """
    cpu = run.resolved_device == "cpu"
    if run.dtype != "auto":
        return Arithmetic(run.dtype, cpu and run.dtype == "float32" and not _rounds_factors())
    return Arithmetic("float32", onednn=True) if cpu else Arithmetic("bfloat16")


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """``bf16`` sends torch's float32 products on a CPU to oneDNN, ``ieee`` to the library it was built
    with."""
    import torch

    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


@cache
def _rounds_factors() -> bool:
    """Whether oneDNN's product of float32 matrices loses what bfloat16 does not hold, on this processor."""
    import torch

    with _products("bf16"), torch.no_grad():
        values = torch.full((PROBE, PROBE), 1 + 2.0**-12)
        return not torch.equal(torch.nn.functional.linear(values, torch.eye(PROBE)), values)
