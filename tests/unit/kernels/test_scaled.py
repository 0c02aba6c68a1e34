"""What rounding changes, compiled, against torch."""

import pytest

torch = pytest.importorskip("torch")

from quantize.kernels.native import Library  # noqa: E402
from quantize.kernels.scaled import column_errors, rounding_change  # noqa: E402
from quantize.numerics.awq import ColumnErrors, torch_change, torch_column_errors  # noqa: E402
from quantize.numerics.grids import Grid  # noqa: E402

GRIDS = [Grid(4, 32, False), Grid(4, 16, True), Grid(3, -1, False, 1), Grid(8, 12, False), Grid(2, -1, True)]


@pytest.fixture
def compiled(library: Library) -> ColumnErrors:
    errors = column_errors()
    assert errors is not torch_column_errors
    return errors


def problem(size: float = 0.05) -> "tuple[torch.Tensor, torch.Tensor]":
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(37, 96, generator=random) * size
    weight[3] = 0
    weight[4] = weight[4].abs()
    weight[5, 7] = 40 * size
    return weight, torch.randn(5, 96, generator=random).exp()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("size", [1e-7, 0.05, 1e4])
def test_they_are_torch_s(compiled: ColumnErrors, grid: Grid, size: float) -> None:
    """But for the rounding of a float32 sum of 37 squares."""
    weight, scales = problem(size)
    found, want = compiled(weight, scales, grid), torch_column_errors(weight, scales, grid)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_show(compiled: ColumnErrors, threads: int) -> None:
    (weight, scales), grid = problem(), Grid(4, 32, False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = compiled(weight, scales, grid)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, torch.cat([compiled(weight, each[None], grid) for each in scales]))


def test_what_it_does_not_take_goes_to_torch(compiled: ColumnErrors) -> None:
    weight, scales = problem()
    found = compiled(weight.double(), scales.double(), Grid(4, 32, True))
    assert found.shape == scales.shape


@pytest.mark.parametrize("size", [1, 12, 64, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_change_is_torch_s_bit_by_bit(library: Library, size: int, threads: int) -> None:
    change = rounding_change()
    assert change is not torch_change
    random = torch.Generator().manual_seed(size)
    values = torch.randn(3, 130, size, generator=random)
    values[0, :4] = torch.tensor([0.0, 0.25, 3e4, -3e4])[:, None]
    step = (torch.rand(3, 130, 1, generator=random) + 0.01).half().float()
    zero = torch.randint(0, 16, (3, 130, 1), generator=random).float()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(change(values, step, zero, 15), torch_change(values, step, zero, 15))
    finally:
        torch.set_num_threads(before)
