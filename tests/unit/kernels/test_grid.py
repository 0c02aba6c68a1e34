"""The compiled search of scales and zero points against torch's."""

import pytest

torch = pytest.importorskip("torch")

from quantize.kernels.grid import grid_search  # noqa: E402
from quantize.kernels.native import VARIABLE, Library  # noqa: E402
from quantize.numerics.grids import Grid  # noqa: E402
from quantize.numerics.rtn import Search, Tried, round_to_nearest, torch_search, tried  # noqa: E402

GRIDS = [
    Grid(bits, size, symmetric, lowest)
    for bits in (2, 3, 4, 8)
    for size, symmetric, lowest in ((16, True, 0), (32, False, 0), (-1, False, 1))
]


@pytest.fixture
def compiled(library: Library) -> Search:
    search = grid_search()
    assert search is not torch_search
    return search


def errors(weight: "torch.Tensor", importance: "torch.Tensor", values: "torch.Tensor") -> "torch.Tensor":
    return (importance * (values - weight) ** 2).double()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("inputs", [64, 96])
@pytest.mark.parametrize("size", [1e-7, 0.05, 1e4])
def test_it_finds_what_torch_finds(compiled: Search, grid: Grid, inputs: int, size: float) -> None:
    """Where another scale is taken, it is as good but for float32's rounding of a sum of 96 squares."""
    random = torch.Generator().manual_seed(grid.bits)
    weight = torch.randn(37, inputs, generator=random) * size
    weight[3] = 0
    weight[4] = weight[4].abs()
    weight[5, 7] = 8 * size
    importance = torch.rand(inputs, generator=random)
    found, want = (
        round_to_nearest(weight, grid, importance, search=each) for each in (compiled, torch_search)
    )
    groups = inputs // grid.columns(inputs)
    mine, theirs = (
        errors(weight, importance, codes.values()).unflatten(1, (groups, -1)).sum(-1)
        for codes in (found, want)
    )
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=0)
    same = (found.scales == want.scales) & (found.zeros == want.zeros)
    assert float(same.float().mean()) > 0.98
    assert torch.equal(found.scales, found.scales.half().float())
    assert torch.equal(
        compiled(weight, importance, grid, tried(grid, 1))[0],
        torch_search(weight, importance, grid, tried(grid, 1))[0],
    )


@pytest.mark.parametrize(
    "grid", [Grid(4, 128, True), Grid(8, -1, True, positive=True), Grid(2, 48, True)], ids=str
)
def test_what_is_not_tried_would_not_have_won(compiled: Search, grid: Grid) -> None:
    """Scales are tried from the largest down as long as a smaller one can still win; upwards all are, and of
    two signs that are equally good the other one first."""
    random = torch.Generator().manual_seed(7)
    weight = torch.cat([torch.randn(40, 384, generator=random), torch.rand(40, 384, generator=random) - 0.5])
    weight[::3] **= 3
    shares = torch.rand(384, generator=random)
    factors = tried(grid, 24).factors
    down, up = (compiled(weight, shares, grid, Tried(each)) for each in (factors, factors[::-1]))
    assert torch.equal(down[0].abs(), up[0].abs())


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_show(compiled: Search, threads: int) -> None:
    weight = torch.randn(100, 48, generator=torch.Generator().manual_seed(1))
    grid, few, before = Grid(4, 16, True), Tried((1.0, 0.9, -0.9), 0.05), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = compiled(weight, torch.ones(48), grid, few)
    finally:
        torch.set_num_threads(before)
    alone = [compiled(row[None], torch.ones(48), grid, few) for row in weight]
    assert torch.equal(found[0], torch.cat([scales for scales, _ in alone]))


def test_float64_goes_to_torch(compiled: Search) -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grid, shares = Grid(3, 16, False), torch.ones(32, dtype=torch.float64)
    for found, want in zip(
        compiled(weight, shares, grid, Tried((1.1, 0.9), 0.1)),
        torch_search(weight, shares, grid, Tried((1.1, 0.9), 0.1)),
        strict=True,
    ):
        assert found.dtype == torch.float64
        assert torch.equal(found, want)


def test_without_kernels_torch_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert grid_search() is torch_search
