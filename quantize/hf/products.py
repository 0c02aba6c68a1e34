"""Which library multiplies torch's float32 matrices on a CPU.

oneDNN's products take a third to a half of the time of MKL's on processors that are not Intel's (a Zen 5
core, 2048 x 576 by 576 x 1536: 229 and 82 GFLOPS), as exact as those; where a processor multiplies bfloat16
matrices, oneDNN may round the factors to them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

#: of a square product that shows whether factors are rounded: as large as those of small models
PROBE = 256


@contextmanager
def onednn_products(use: bool = True) -> Iterator[None]:
    """Sends torch's float32 products on a CPU to oneDNN, which may round their factors (``rounds_factors``);
    if not ``use``, to the library it was built with. Put back at the end."""
    import torch

    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16" if use else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def exact_products() -> Iterator[None]:
    """oneDNN's where it rounds nothing."""
    with onednn_products(not rounds_factors()):
        yield


@cache
def rounds_factors() -> bool:
    """Whether oneDNN's product of float32 matrices loses what bfloat16 does not hold, on this processor."""
    import torch

    with onednn_products(), torch.no_grad():
        values = torch.full((PROBE, PROBE), 1 + 2.0**-12)
        return not torch.equal(torch.nn.functional.linear(values, torch.eye(PROBE)), values)
