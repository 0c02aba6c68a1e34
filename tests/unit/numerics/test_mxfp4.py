"""MXFP4 against its definition, and against transformers' own."""

import numpy as np
import pytest

from quantize.numerics.mxfp4 import dequantize_mxfp4


def naive(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float64, value by value: sign, two bits of exponent with bias 1, one of mantissa, times 2 ** scale."""
    out = np.empty((*codes.shape[:-1], 32))
    for at in np.ndindex(codes.shape):
        for half in (0, 1):
            code = int(codes[at]) >> 4 * half & 15
            exponent, mantissa = code >> 1 & 3, code & 1
            size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
            sign = -1 if code & 8 else 1
            out[(*at[:-1], 2 * at[-1] + half)] = sign * size * 2.0 ** (int(scales[at[:-1]]) - 127)
    return out.reshape(*codes.shape[:-2], -1)


def test_every_code_and_scale() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (3, 17, 5, 16), dtype=np.uint8)
    scales = rng.integers(0, 252, (3, 17, 5), dtype=np.uint8)  # 6 * 2 ** 125 is a float32 still
    codes[0, :16, 0, 0] = np.arange(16)
    got = dequantize_mxfp4(codes, scales)
    assert got.dtype == np.float32
    assert np.array_equal(got.astype(np.float64), naive(codes, scales))
    assert not (got.view(np.uint32) & 0xFFFF).any()  # bfloat16 holds each
    scales[1, 2, 3] = 0xFF
    assert np.isnan(dequantize_mxfp4(codes, scales)[1, 2, 96:128]).all()


def test_as_transformers() -> None:
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = rng.integers(110, 130, (2, 6, 3), dtype=np.uint8)
    theirs = mxfp4.convert_moe_packed_tensors(torch.from_numpy(codes), torch.from_numpy(scales))
    assert np.array_equal(theirs.float().numpy(), dequantize_mxfp4(codes, scales).swapaxes(1, 2))


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="expected"):
        dequantize_mxfp4(np.zeros((2, 3, 16), np.uint8), np.zeros((2, 4), np.uint8))
