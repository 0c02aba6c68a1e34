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


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it: such a product takes half the time of a float32 one
    (a Zen 5 core, 2048 x 576 by 576 x 1536: 475 and 235 GFLOPS), and is added up in float32."""
    import torch

    return torch.cpu._is_avx512_bf16_supported()


@contextmanager
def float32_attention() -> Iterator[None]:
    """In this thread, torch's attention over bfloat16 on a CPU is computed in float32, which takes two thirds
    of the time (a Zen 5 core, 512 tokens, heads of 64) and rounds less; its result is bfloat16 as ever."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode

    def wide(value: Any) -> Any:
        narrow = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
        return value.float() if narrow and value.device.type == "cpu" else value

    class Wide(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is not scaled_dot_product_attention:
                return func(*args, **kwargs)
            given = [*args, *kwargs.values()]
            kind = next(each.dtype for each in given if isinstance(each, torch.Tensor))
            found = func(*map(wide, args), **{name: wide(each) for name, each in kwargs.items()})
            return found.to(kind)

    with Wide():
        yield


@cache
def rounds_factors() -> bool:
    """Whether oneDNN's product of float32 matrices loses what bfloat16 does not hold, on this processor."""
    import torch

    with onednn_products(), torch.no_grad():
        values = torch.full((PROBE, PROBE), 1 + 2.0**-12)
        return not torch.equal(torch.nn.functional.linear(values, torch.eye(PROBE)), values)
