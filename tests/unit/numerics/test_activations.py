"""Rounding of activations, against gguf-py's Q8_0 quantizer and a plain float64 loop of Q8_K."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gguf import GGMLQuantizationType  # noqa: E402
from gguf.quants import dequantize, quantize  # noqa: E402

from quantize.numerics.activations import round_activations  # noqa: E402


def heavy_tailed(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_t(3, (rows, columns)).astype(np.float32)


def test_q8_0_equals_the_block_quantizer() -> None:
    x = heavy_tailed(7, 96)
    x[2] = 0  # a block of zeros has no scale
    expected = dequantize(quantize(x, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0)
    got = round_activations(torch.from_numpy(x), "q8_0").numpy()
    # The quantizer multiplies by the reciprocal of the scale: a value half-way between two steps may go
    # either way.
    step = np.abs(x).reshape(7, 3, 32).max(-1).repeat(32, -1) / 127
    assert np.abs(got - expected).max() <= step.max()
    assert (got == expected).mean() > 0.999


def test_q8_k_equals_a_float64_loop() -> None:
    x = heavy_tailed(3, 512)
    got = round_activations(torch.from_numpy(x), "q8_k").numpy()
    for row in range(3):
        for block in range(2):
            part = x[row, block * 256 : block * 256 + 256].astype(np.float64)
            scale = np.abs(part).max() / 127
            expected = np.round(part / scale) * scale
            assert (
                np.abs(got[row, block * 256 : block * 256 + 256] - expected).max() < 1e-5 * np.abs(part).max()
            )


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_halves(kind: str, dtype: torch.dtype) -> None:
    x = torch.from_numpy(heavy_tailed(2, 5))
    assert torch.equal(round_activations(x, kind), x.to(dtype).float())
