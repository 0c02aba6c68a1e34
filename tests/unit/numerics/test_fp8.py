"""Float8 weights against torch's own type, and blocks of them against a loop."""

import numpy as np
import pytest
import torch

from quantize.numerics.fp8 import dequantize_e4m3, e4m3_values, e8m0_values


def test_every_code_means_what_torch_says() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(e4m3_values(), expected, equal_nan=True)
    powers = codes.view(torch.float8_e8m0fnu).float().numpy()
    assert np.array_equal(e8m0_values(codes.numpy()), powers, equal_nan=True)


@pytest.mark.parametrize("shape", [(5, 7), (4, 6), (3, 5, 7), (2, 2, 4, 3)])
def test_each_value_has_the_scale_of_its_block(shape: tuple[int, ...]) -> None:
    """Against float64, where a product of 4 and 24 bits is exact: rounded once, to float32."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 120, shape).astype(np.uint8)  # no NaN among them
    blocks = (*shape[:-2], -(-shape[-2] // 2), -(-shape[-1] // 3))
    scales = random.uniform(1e-4, 3, blocks).astype(np.float32)
    expected = np.empty(shape, np.float32)
    for at in np.ndindex(shape):
        value = np.float64(e4m3_values()[codes[at]])
        expected[at] = np.float32(value * np.float64(scales[(*at[:-2], at[-2] // 2, at[-1] // 3)]))
    assert np.array_equal(dequantize_e4m3(codes, scales, (2, 3)), expected)


def test_one_scale_for_all_and_scales_that_do_not_fit() -> None:
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    one = dequantize_e4m3(codes, np.float32([0.1]), (128, 128))
    assert np.array_equal(one, e4m3_values()[codes] * np.float32(0.1))
    with pytest.raises(ValueError, match=r"shape \[2, 2\], expected \[2, 1\]"):
        dequantize_e4m3(codes, np.ones((2, 2), np.float32), (2, 4))
