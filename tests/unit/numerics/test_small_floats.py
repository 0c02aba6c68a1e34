"""Floats of 8 and 4 bits against naive searches in float64 and against the library that reads them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantize.errors import StepFailed  # noqa: E402
from quantize.numerics.fp8 import e4m3_values  # noqa: E402
from quantize.numerics.mxfp4 import VALUES  # noqa: E402
from quantize.numerics.small_floats import (  # noqa: E402
    e2m1_codes,
    nearest_e2m1,
    tensor_scale,
    to_e4m3,
    to_mxfp4,
    to_nvfp4,
)


def weight(rows: int = 24, columns: int = 96, seed: int = 0) -> "torch.Tensor":
    random = torch.Generator().manual_seed(seed)
    found = torch.randn(rows, columns, generator=random) * 0.03
    found[1] = 0
    found[2, 5] = 0.9
    return found


def naive_e2m1(value: float) -> float:
    """Of two equally near, the one whose code is even."""
    size = min(range(8), key=lambda code: (abs(abs(value) - VALUES[code]), code % 2))
    return float(np.copysign(VALUES[size], value))


def test_nearest_of_e2m1() -> None:
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    values = np.concatenate([ties, np.linspace(0, 8, 333), np.nextafter(ties, 9), np.nextafter(ties, 0)])
    values = np.concatenate([values, -values]).astype(np.float32)
    found = nearest_e2m1(torch.from_numpy(values))
    assert found.tolist() == [naive_e2m1(float(value)) for value in values]
    codes = e2m1_codes(found).numpy()
    table = np.array([*VALUES, *(-value for value in VALUES)])
    assert np.array_equal(table[codes], found.numpy())


def test_nearest_of_e2m1_is_the_librarys() -> None:
    fp4_utils = pytest.importorskip("compressed_tensors.quantization.utils.fp4_utils")
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 3
    assert torch.equal(nearest_e2m1(values), fp4_utils.cast_to_fp4(values.clone()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("block", [(1, 96), (16, 32), (128, 128)])
def test_e4m3_is_the_nearest_under_the_stored_scale(dtype: "torch.dtype", block: tuple[int, int]) -> None:
    source = weight()
    found = to_e4m3(source, block, dtype)
    assert torch.equal(found.scales, found.scales.to(dtype).float())
    table = e4m3_values().astype(np.float64)
    finite = table[np.isfinite(table)]
    rows, columns = block
    for row in range(24):
        for column in range(0, 96, 7):
            scale = float(found.scales[row // rows, column // columns])
            wanted = float(source[row, column]) / scale
            code = int(found.codes[row, column])
            # float32's quotient may fall on the other side of a half: as near but for its last place
            least = np.abs(finite - wanted).min()
            assert abs(table[code] - wanted) <= least + abs(wanted) * 2**-22
            assert float(found.values()[row, column]) == np.float32(table[code]) * np.float32(scale)
    largest = source.abs().max() / 448
    assert float(found.scales[2 // rows].max()) == pytest.approx(
        float(largest), rel=2**-8
    )  # bfloat16 has 8 bits
    assert not found.values()[1].any()


def group_error(source: "torch.Tensor", scales: "torch.Tensor", group: int) -> "torch.Tensor":
    grouped = source.double().unflatten(1, (-1, group))
    wide = scales.double()[..., None]
    return (nearest_e2m1(grouped / wide) * wide - grouped).square().sum(-1)


def test_no_scale_of_e4m3_errs_less() -> None:
    """Of all 126 positive ones, for each group; but for float32's rounding of sums of 16 squares."""
    source = weight()
    whole = tensor_scale(float(source.abs().max()))
    found = to_nvfp4(source, whole)
    held = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float() / whole
    every = torch.stack([group_error(source, scale.expand(24, 6), 16) for scale in held])
    best = every.amin(0)
    mine = group_error(source, found.scales / whole, 16)
    assert float((mine / best.clamp_min(1e-30))[best > 0].max()) < 1.00001
    plain = group_error(source, source.abs().unflatten(1, (-1, 16)).amax(-1).clamp_min(1e-9) / 6, 16)
    assert float(mine.sum()) < 0.95 * float(plain.sum())


def test_no_power_of_two_errs_less() -> None:
    source = weight()
    found = to_mxfp4(source)
    held = torch.ldexp(torch.ones(40), torch.arange(-30, 10))
    best = torch.stack([group_error(source, scale.expand(24, 3), 32) for scale in held]).amin(0)
    mine = group_error(source, found.scales, 32)
    assert float((mine / best.clamp_min(1e-30))[best > 0].max()) < 1.00001
    assert torch.equal(torch.frexp(found.scales)[0], torch.full_like(found.scales, 0.5))


def test_scales_of_a_tensor_are_powers_of_two_and_leave_room() -> None:
    for largest in (1e-6, 0.02, 1.0, 3.0, 1e4):
        whole = tensor_scale(largest)
        assert np.frexp(whole)[0] == 0.5
        assert 448 / 2 < largest * 1.75 / 6 * whole <= 448
    assert tensor_scale(0) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    source = weight()
    source[3, 4] = bad
    for round_it in (
        lambda: to_e4m3(source, (1, 96), torch.bfloat16),
        lambda: to_nvfp4(source, 1.0),
        lambda: to_mxfp4(source),
    ):
        with pytest.raises(StepFailed, match="NaN or Inf"):
            round_it()
