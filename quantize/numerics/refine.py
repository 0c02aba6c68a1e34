"""What GPTQ leaves to gain: scales fitted to the codes that were chosen, and codes chosen again one by one.

Both lower the same sum that GPTQ minimises, (w - q) H (w - q)^T for each row: scales by least squares with
the codes as they are, codes by coordinate descent with the scales as they are.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from quantize.numerics.columns import BLOCK, Block, Levels, torch_block, visit

if TYPE_CHECKING:
    import torch

#: a scale that least squares would move further than this, either way, stays, with all scales of its row
MOST = 3.0
#: of the mean of its diagonal, added to the diagonal of each row's small system
RIDGE = 1e-6


def refit(
    products: "torch.Tensor",
    hessian: "torch.Tensor",
    whole: "torch.Tensor",
    scales: "torch.Tensor",
    held_in: str = "float16",
) -> "torch.Tensor":
    """Scales (o, g), rounded to float16 (then to bfloat16, if ``held_in``), that make (w - q) H (w - q)^T
    least for q = scale * ``whole``.

    ``products`` (o, i): the weights w times ``hessian`` (i, i); ``whole`` (o, i): the steps code - zero;
    ``scales`` (o, g) as they are. Arithmetic is in the dtype of ``products``, the systems (g, g) of the rows
    in float64. Scales keep their signs; a row keeps all its scales where one would change sign, move beyond
    ``MOST`` or lie where float16 has fewer than 11 bits; a group whose steps are all 0 keeps its own.
    """
    import torch

    count = scales.shape[1]
    width = whole.shape[1] // count
    normal = torch.empty(len(whole), count, count, dtype=torch.float64, device=whole.device)
    for group in range(count):
        part = slice(group * width, (group + 1) * width)
        product = (whole[:, part] @ hessian[part]).mul_(whole)
        normal[:, group] = product.unflatten(1, (count, width)).sum(-1)
    wanted = (products * whole).unflatten(1, (count, width)).sum(-1).to(torch.float64)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    unused = diagonal == 0
    diagonal += RIDGE * diagonal.mean(-1, keepdim=True) + unused
    found = torch.linalg.solve(normal, wanted[..., None])[..., 0]
    old = scales.to(torch.float64)
    found = torch.where(unused, old, found)
    rounded = found.to(torch.float32).to(torch.float16).to(torch.float64)
    moved = found / old
    fits = unused | ((moved > 1 / MOST) & (moved < MOST) & ((rounded - found).abs() <= 2**-10 * found.abs()))
    if held_in == "bfloat16":
        rounded = rounded.to(torch.bfloat16).to(torch.float64)
    return torch.where(fits.all(-1, keepdim=True), rounded, old).to(scales.dtype)


def sweep(
    columns: "torch.Tensor",
    hessian: "torch.Tensor",
    whole: "torch.Tensor",
    levels: Levels,
    *,
    block: int = BLOCK,
    run: Block = torch_block,
) -> "torch.Tensor":
    """``whole`` steps (i, o) after one round of coordinate descent: each code in turn becomes the one with
    which (w - q) H (w - q)^T is least, the others being as they are. ``columns`` (i, o): the weights;
    ``hessian`` (i, i) in the order of its rows."""
    values = levels.values(whole)
    relative = hessian / hessian.diagonal()[:, None]
    wanted = values + relative @ (columns - values)
    return visit(wanted, values, relative.T, levels, block=block, run=run)[0]


def refined(
    weight: "torch.Tensor",
    hessian: "torch.Tensor",
    places: "torch.Tensor",
    whole: "torch.Tensor",
    levels: Levels,
    rounds: int,
    *,
    block: int = BLOCK,
    run: Block = torch_block,
    held_in: str = "float16",
) -> "tuple[torch.Tensor, Levels]":
    """``rounds`` times scales and codes in turn, then scales once more: (steps, levels).

    ``weight`` (o, i) and ``hessian`` (i, i) as they stand, ``whole`` (i, o) in the order of visits
    ``places`` (i,).
    """
    import torch

    back = torch.argsort(places)
    products = weight @ hessian
    columns, turned = weight[:, places].T.contiguous(), hessian[places][:, places]
    for number in range(rounds + 1):
        scales = refit(products, hessian, whole[back].T.contiguous(), levels.scale.T, held_in)
        levels = replace(levels, scale=scales.T.contiguous())
        if number < rounds:
            whole = sweep(columns, turned, whole, levels, block=block, run=run)
    return whole, levels
