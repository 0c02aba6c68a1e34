"""How llama.cpp rounds the activations that meet a quantized weight on CPU, done again in torch.

A product with a quantized weight first rounds the other side, row by row in blocks, to 8 bits
(``vec_dot_type`` in ggml-cpu's type table). Doing the same on the reference's side leaves only the order of
additions, so that a tight tolerance tells a bug from this rounding, whose effect differs a hundredfold
between models.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def round_activations(x: "torch.Tensor", kind: str) -> "torch.Tensor":
    """``x`` (..., columns) float32 as llama.cpp sees it; ``kind`` is ``q8_0``, ``q8_k``, ``f16`` or ``bf16``.

    ``q8_0``: blocks of 32, scale max|x|/127 stored in float16; ``q8_k``: blocks of 256, scale max|x|/127 in
    float32. Both round to nearest. Columns must be a whole number of blocks. Source: quantize_row_q8_0_ref
    and quantize_row_q8_K_ref in ggml-quants.c.
    """
    import torch

    if kind in ("f16", "bf16"):
        return x.to(torch.float16 if kind == "f16" else torch.bfloat16).float()
    blocks = x.unflatten(-1, (-1, 32 if kind == "q8_0" else 256))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    whole = torch.round(blocks / torch.where(scale == 0, 1, scale)).clamp(-127, 127)
    return (whole * (scale.half().float() if kind == "q8_0" else scale)).flatten(-2)
