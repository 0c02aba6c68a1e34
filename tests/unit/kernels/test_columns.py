"""The compiled loop over columns against torch's."""

import pytest

torch = pytest.importorskip("torch")

from quantize.kernels.columns import column_block, column_maker  # noqa: E402
from quantize.kernels.native import VARIABLE, Library  # noqa: E402
from quantize.numerics.columns import Block, Levels, torch_block  # noqa: E402
from quantize.numerics.gptq import solve  # noqa: E402
from quantize.numerics.grids import Grid  # noqa: E402


@pytest.fixture
def compiled(library: Library) -> Block:
    block = column_block()
    assert block is not torch_block
    return block


def problem(outputs: int, inputs: int) -> "tuple[torch.Tensor, torch.Tensor]":
    random = torch.Generator().manual_seed(outputs)
    rows = torch.randn(3 * inputs, inputs, generator=random) @ torch.randn(inputs, inputs, generator=random)
    return torch.randn(outputs, inputs, generator=random) * 0.05, rows.T @ rows / len(rows)


@pytest.mark.parametrize("outputs", [1, 63, 300])
@pytest.mark.parametrize("columns", [1, 100, 256])
def test_one_block(compiled: Block, outputs: int, columns: int) -> None:
    """Factors, scales and weights are small multiples of powers of two: every sum is exact, so the order of
    additions does not show and the results are equal."""
    random = torch.Generator().manual_seed(columns)
    count = -(-columns // 16)

    def whole(low: int, high: int, *shape: int) -> "torch.Tensor":
        return torch.randint(low, high, shape, generator=random).float()

    scale = 2.0 ** whole(-3, 1, count, outputs) * whole(0, 2, count, outputs).mul(2).sub(1)
    zero = whole(0, 16, count, outputs)
    levels = Levels(scale, -zero, 15 - zero, torch.arange(columns) // 16)
    wanted, before = (whole(-99, 100, columns, outputs) / 16 for _ in range(2))
    factor = whole(-3, 4, columns, columns) / 4
    expected = wanted.clone()
    want = torch_block(expected, before, factor, levels, levels.groups)
    found = compiled(wanted, before, factor, levels, levels.groups)
    assert torch.equal(found[0], want[0])
    assert torch.equal(found[1], want[1])
    assert torch.equal(wanted, expected)
    assert found[0].unique().numel() > 1 or columns * outputs == 1


@pytest.mark.parametrize("grid", [Grid(4, 64, True), Grid(2, 64, False)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_codes_are_those_of_torch(compiled: Block, grid: Grid, threads: int) -> None:
    """But for those that a sum rounded otherwise tips over a tie: at most 1e-4 of them."""
    weight, hessian = problem(1000, 256)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, again = (solve(weight, hessian, grid, run=compiled).codes for _ in range(2))
    finally:
        torch.set_num_threads(before)
    want = solve(weight, hessian, grid).codes
    assert int((found.codes != want.codes).sum()) <= 1e-4 * want.codes.numel()
    assert torch.equal(found.codes, again.codes)


def test_what_it_does_not_take_goes_to_torch(compiled: Block) -> None:
    weight, hessian = problem(10, 300)
    found = solve(weight.double(), hessian.double(), Grid(4, -1, True), run=compiled)
    assert torch.equal(
        found.codes.codes, solve(weight.double(), hessian.double(), Grid(4, -1, True)).codes.codes
    )
    larger = solve(weight, hessian, Grid(4, -1, True), block=300, run=compiled)
    assert torch.equal(larger.codes.codes, solve(weight, hessian, Grid(4, -1, True), block=300).codes.codes)


def test_without_kernels_torch_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert column_block() is torch_block
    assert column_maker() == "torch"
