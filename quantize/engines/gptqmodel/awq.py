"""GPTQModel's AWQ search, mended where it is wrong in float32 on a CPU and slow everywhere."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: activations that the clipping search looks at, and its grid: the engine's own numbers
CLIP_TOKENS, CLIP_GRID, CLIP_MOST = 512, 20, 0.5


@contextlib.contextmanager
def awq_search() -> Iterator[set[str]]:
    """While inside, the engine's AWQ takes float32 models and searches clipping bounds by ``best_clip``.
    Collects the names of layers that it rounds without scales, because no token reached them or one of their
    group.

    It was written for half precision. Its packer stores float16 scales whatever it gets, but refuses float32
    by name. Its scale search keeps "a float32 copy on the CPU" of each weight, to restore it after every
    trial; for a float32 weight on the CPU that is no copy but the weight itself, so the trials pile up and
    the model is destroyed, without an error. Here the weights hand out copies while they are searched.
    """
    import torch
    from gptqmodel.looper.awq_processor import AWQProcessor
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    class Copied(torch.nn.Parameter):
        def detach(self) -> torch.Tensor:
            return super().detach().clone()

    def compute_best_scale(
        self: Any,
        x: Any,
        w_mean: Any,
        x_mean: Any,
        module: Any,
        linears: Any,
        reference: Any,
        kwargs: Any = None,
    ) -> Any:
        weights = [linear.weight for linear in linears]
        for linear in linears:
            linear.weight = Copied(linear.weight.data, requires_grad=False)
        try:
            return search(self, x, w_mean, x_mean, module, linears, reference, kwargs or {})
        finally:
            for linear, weight in zip(linears, weights, strict=True):
                linear.weight = weight

    def compute_best_clip(self: Any, w: torch.Tensor, input_feat: torch.Tensor) -> torch.Tensor:
        return best_clip(w, input_feat, self.qcfg.group_size, self._pseudo_quantize_tensor_into)

    unscaled: set[str] = set()

    def apply_quant(self: Any, named: dict[str, Any], scales_list: Any) -> Any:
        if not scales_list:
            unscaled.update(str(module.full_name) for module in named.values())
        return rounding(self, named, scales_list)

    rounding = AWQProcessor.apply_quant
    dtypes, search, clip = (
        AwqTorchLinear.SUPPORTS_DTYPES,
        AWQProcessor._compute_best_scale,
        AWQProcessor._compute_best_clip,
    )
    AwqTorchLinear.SUPPORTS_DTYPES = [*dtypes, torch.float32]
    AWQProcessor._compute_best_scale, AWQProcessor._compute_best_clip = compute_best_scale, compute_best_clip
    AWQProcessor.apply_quant = apply_quant
    try:
        yield unscaled
    finally:
        AwqTorchLinear.SUPPORTS_DTYPES = dtypes
        AWQProcessor._compute_best_scale, AWQProcessor._compute_best_clip = search, clip
        AWQProcessor.apply_quant = rounding


def best_clip(
    weight: "torch.Tensor", inputs: "torch.Tensor", group_size: int, round_into: Any
) -> "torch.Tensor":
    """The bound (out, groups, 1) that each group of each row is clamped to before rounding, for the least
    error of its products.

    ``weight`` (out, in); ``inputs`` (..., in), of which every nth row is used so that 512 to 1023 remain;
    ``round_into(source, target)`` quantizes and dequantizes groups along the last axis. Bounds tried: the
    group's largest magnitude times 1, 0.95, ... 0.55. The mean squared error of x . (rounded - w) over the
    rows x is the quadratic form of the difference with the second moments of x, (group, group) per group: the
    same numbers as multiplying every row by every candidate, at a fraction of the work and memory. Source:
    GPTQModel 7.6, AWQProcessor._compute_best_clip; AWQ, Lin et al. 2023.
    """
    import torch

    outputs, width = weight.shape
    size = group_size if group_size > 0 else width
    rows = inputs.reshape(-1, width)
    rows = rows[:: max(1, len(rows) // CLIP_TOKENS)].to(weight.device, torch.float32)
    grouped = rows.reshape(len(rows), -1, size).transpose(0, 1)
    moments = grouped.transpose(1, 2) @ grouped / len(rows)  # (groups, size, size)
    values = weight.detach().reshape(outputs, -1, size)
    largest = values.abs().amax(dim=-1, keepdim=True)
    best, least = largest.clone(), torch.full_like(largest, torch.inf, dtype=torch.float32)
    clamped, rounded = torch.empty_like(values), torch.empty_like(values)
    for step in range(int(CLIP_MOST * CLIP_GRID)):
        bound = largest * (1 - step / CLIP_GRID)
        torch.clamp(values, -bound, bound, out=clamped)
        round_into(clamped, rounded)
        difference = (rounded - values).to(torch.float32).transpose(0, 1)  # (groups, out, size)
        error = ((difference @ moments) * difference).sum(-1).T[..., None]
        better = error < least
        least, best = torch.where(better, error, least), torch.where(better, bound, best)
    return best
