"""The compiled rounding of rows against the arithmetic in torch and the sketches in numpy."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quantize.checkpoint.tensors import torch_bytes  # noqa: E402
from quantize.dtypes import NUMPY, to_float32  # noqa: E402
from quantize.formats.compressed_tensors import SCHEMES, CtFormat  # noqa: E402
from quantize.kernels.grid import grid_search  # noqa: E402
from quantize.kernels.native import Library  # noqa: E402
from quantize.kernels.rounded import RowRounder  # noqa: E402
from quantize.numerics.rtn import round_to_nearest  # noqa: E402
from quantize.numerics.sketch import sketch  # noqa: E402
from quantize.numerics.small_floats import to_e4m3  # noqa: E402

TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def bits_of(weight: "torch.Tensor", dtype: str) -> np.ndarray:
    stored = weight.to(TORCH[dtype])
    return torch_bytes(stored).view(NUMPY[dtype]).reshape(stored.shape)


def awkward(rows: int, columns: int, size: float) -> "torch.Tensor":
    """Zeros of both signs, one sign alone, an outlier, powers of two, halves between codes."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)) * size
    weight[1], weight[2] = 0, -0.0
    weight[3] = weight[3].abs()
    weight[4] = -weight[4].abs()
    weight[5, 7] = 100 * size
    weight[6] = torch.arange(columns) % 31 / 2 * size
    weight[7] = 2.0 ** -(torch.arange(columns) % 24) * size
    return weight


def formats(scale_type: str) -> list[CtFormat]:
    int4 = ((32, True), (32, False), (-1, True), (-1, False))
    found = [CtFormat(4, group, sym, (), None, scheme="w4a16", scale_type=scale_type) for group, sym in int4]
    for scheme in ("w8a16", "int8", "fp8-dynamic"):
        found.append(CtFormat(8, -1, True, (), None, scheme=scheme, scale_type=scale_type))
    return [*found, CtFormat(8, 32, True, (), None, scheme="w8a16", scale_type=scale_type)]


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("scale_type", TORCH)
@pytest.mark.parametrize(("columns", "size"), [(64, 1.0), (96, 1e-6), (160, 0.02), (1056, 300.0)])
def test_bytes_are_those_of_torch(
    library: Library, dtype: str, scale_type: str, columns: int, size: float
) -> None:
    """Codes, scales and zero points; sketches but for the order of sums in float64."""
    raw = bits_of(awkward(16, columns, size), dtype)
    values = to_float32(raw, dtype)
    weight = torch.from_numpy(values)
    for format in formats(scale_type):
        integers = SCHEMES[format.scheme].kind == "int"
        grid = format.grid if integers else None
        made = RowRounder(library, dtype, columns, scale_type, grid, 0x80 if format.scheme == "int8" else 0)(
            raw
        )
        want = (
            round_to_nearest(weight, format.grid, search=grid_search())
            if integers
            else to_e4m3(weight, (1, columns), TORCH[scale_type])
        )
        assert made.fits
        mine, theirs = format.rounded_rows(made), format.packed_rows(want)
        assert mine.keys() == theirs.keys()
        for part, array in theirs.items():
            assert mine[part].shape == array.shape
            assert mine[part].view(np.uint8).tobytes() == array.view(np.uint8).tobytes(), (format, part)
        for found, of in ((made.took, values), (made.made, want.values().numpy())):
            most = 2.0**-44 * np.sqrt(columns) * np.linalg.norm(of.astype(np.float64), axis=1)[:, None]
            assert (np.abs(found - sketch(of)) <= most).all()


def test_every_bfloat16_becomes_the_nearest_e4m3(library: Library) -> None:
    """All finite ones, whatever the scale of their row; the oracle is float64 and the list of numbers."""
    patterns = np.arange(0x7F80, dtype=np.uint16)
    raw = np.stack([patterns, patterns | 0x8000])
    raw[:, 0x7000:] = 0x3F80  # larger ones would make the others zeros
    made = RowRounder(library, "BF16", raw.shape[1], "F32")(raw)
    numbers = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    x = np.abs(to_float32(raw, "BF16")) / made.scales
    at = np.searchsorted(numbers, x.astype(np.float64))
    above, below = numbers[np.minimum(at, 0x7E)], numbers[np.maximum(at - 1, 0)]
    nearest = np.minimum(np.abs(above - x), np.abs(below - x))
    assert np.array_equal(np.abs(numbers[made.codes & 0x7F] - x), nearest)
    assert np.array_equal(made.codes >> 7, raw >> 15)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("integers", [False, True])
def test_what_is_not_finite_fits_nowhere(library: Library, value: float, integers: bool) -> None:
    weight = awkward(16, 64, 1.0)
    weight[9, 63] = value
    grid = CtFormat(4, 32, True, (), None).grid if integers else None
    for dtype in TORCH:
        assert not RowRounder(library, dtype, 64, "BF16", grid)(bits_of(weight, dtype)).fits


def test_a_weight_beyond_all_scales_fits_nowhere(library: Library) -> None:
    grid = CtFormat(4, 32, True, (), None).grid
    assert not RowRounder(library, "F32", 64, "BF16", grid)(bits_of(awkward(16, 64, 1e6), "F32")).fits
