"""GPTQModel's AWQ search, mended where it is wrong in float32 on a CPU and slow everywhere."""

import contextlib
from collections.abc import Iterator
from typing import Any

from quantize.numerics.clip import best_clip


@contextlib.contextmanager
def awq_search() -> Iterator[set[str]]:
    """While inside, the engine's AWQ takes float32 models and searches clipping bounds by ``best_clip``.
    Collects the names of layers that it rounds without scales, because no token reached them or one of their
    group.

    It was written for half precision. Its packer stores float16 scales whatever it gets, but refuses float32
    by name. Its scale search keeps "a float32 copy on the CPU" of each weight, to restore it after every
    trial; for a float32 weight on the CPU that is not a copy but the weight itself, so the trials pile up and
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
