"""What GPTQModel holds in memory: each layer's own dequantization as it is packed, everything else before it
is saved."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import FLOATS, TORCH
from quantize.engines.base import Computed
from quantize.numerics.packing import gptq_zeros

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def packed_weights() -> Iterator[Computed]:
    """While inside, sketches of the weights of every layer that the engine packs, by its own unpacking in
    float32.

    Taken layer by layer, because of a large model the engine keeps packed layers on disk.
    """
    from gptqmodel.looper.awq_processor import AWQProcessor
    from gptqmodel.looper.gptq_processor import GPTQProcessor

    computed = Computed()
    guard = threading.Lock()
    pack_gptq, pack_awq = GPTQProcessor.submodule_finalize, AWQProcessor.pack_module

    def take(model: Any, name: str) -> None:
        layer = model.get_submodule(name)
        values, unknown = _unpacked(layer)
        with guard:
            computed.add(f"{name}.weight", values, unknown)

    def submodule_finalize(self: Any, module: Any, model: Any, **kwargs: Any) -> None:
        pack_gptq(self, module, model, **kwargs)
        take(model.model, module.full_name)

    def pack_module(self: Any, module: Any) -> None:
        pack_awq(self, module)
        take(self.gptq_model.model, module.full_name)

    GPTQProcessor.submodule_finalize, AWQProcessor.pack_module = submodule_finalize, pack_module
    try:
        yield computed
    finally:
        GPTQProcessor.submodule_finalize, AWQProcessor.pack_module = pack_gptq, pack_awq


def add_unquantized(computed: Computed, model: "torch.nn.Module", checkpoint: Checkpoint) -> None:
    """The model's other tensors (AWQ moves scales into norms), rounded as the source stores them. What the
    engine keeps on disk, of a large model, is left out."""
    import itertools

    import torch

    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        info = checkpoint.tensors.get(name)
        if info is not None and name not in computed and not tensor.is_meta and info.dtype in FLOATS:
            stored = getattr(torch, TORCH[info.dtype])
            computed.add(name, tensor.detach().to(stored).float().cpu().numpy())


def _unpacked(layer: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """(weight (out, in) float32, rows (out,) that the file stores differently): products of whole numbers and
    float16 scales, exact in float32.

    GPTQ's format cannot express a zero point of 0; such a row is written with 1 (``lift_zero_points``).
    """
    import torch
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    with torch.inference_mode():
        if not hasattr(layer, "g_idx"):
            exact = layer.scales.float()
            return _numpy(
                dequantize_gemm(layer.qweight, layer.qzeros, exact, layer.bits, layer.group_size)
            ), None
        layer._init_wf_unsqueeze_buffers()
        scales, zeros = layer.scales, layer.qzeros
        layer.scales, layer.qzeros = scales.float(), zeros.clone()
        convert_gptq_v1_to_v2_format_module(layer, layer.bits, layer.pack_dtype)  # its unpacking is of v2
        values, meant = (
            _numpy(layer.dequantize_weight()),
            gptq_zeros(layer.qzeros.cpu().numpy(), layer.bits) - 1,
        )
        layer.scales, layer.qzeros = scales, zeros
    return values, (meant == 0).any(0)


def _numpy(transposed: "torch.Tensor") -> np.ndarray:
    values: np.ndarray = transposed.float().T.contiguous().cpu().numpy()
    return values
