"""What a calibration pass computes in, and how many threads it has."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from quantize.recipe import RunOptions


@dataclass(frozen=True)
class Arithmetic:
    """``dtype``: of weights and activations. ``split``: float32 products on a CPU are computed from bfloat16
    parts of the factors and added in float32, where the processor has instructions for that."""

    dtype: str
    split: bool = False

    @property
    def name(self) -> str:
        """As the manifest records it."""
        return f"{self.dtype}, products of bfloat16 parts" if self.split else self.dtype

    @contextmanager
    def used(self, threads: int | None) -> Iterator[None]:
        """Settings of torch's, put back at the end."""
        import torch

        before = torch.get_num_threads()
        matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        precision = matmul.fp32_precision
        try:
            if threads:
                torch.set_num_threads(threads)
            matmul.fp32_precision = "bf16" if self.split else "ieee"
            yield
        finally:
            matmul.fp32_precision = precision
            torch.set_num_threads(before)


def arithmetic_of(run: RunOptions) -> Arithmetic:
    """What ``run`` asks for; else float32 on a CPU, and bfloat16 on an accelerator."""
    if run.dtype != "auto":
        return Arithmetic(run.dtype)
    return Arithmetic("float32") if run.resolved_device == "cpu" else Arithmetic("bfloat16")
