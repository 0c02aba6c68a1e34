"""How runtimes round the activations that meet a quantized weight, done again in torch: llama.cpp on a CPU,
and compressed-tensors where its scheme says so.

A product with a quantized weight first rounds the other side, row by row in blocks, to 8 bits
(``vec_dot_type`` in ggml-cpu's type table). Doing the same on the reference's side leaves only the order of
additions, so that a tight tolerance tells a bug from this rounding, whose effect differs a hundredfold
between models.
"""

from typing import TYPE_CHECKING

from quantize.numerics.small_floats import E2M1_MAX, E4M3_MAX, nearest_e2m1

if TYPE_CHECKING:
    import torch


def round_activations(x: "torch.Tensor", kind: str) -> "torch.Tensor":
    """``x`` (..., columns) float32 as a runtime sees it; ``kind`` is ``q8_0``, ``q8_k``, ``f16`` or ``bf16``,
    or one of ``compressed_activations``.

    ``q8_0``: blocks of 32, scale max|x|/127 stored in float16; ``q8_k``: blocks of 256, scale max|x|/127 in
    float32. Both round to nearest. Columns must be a whole number of blocks. Source: quantize_row_q8_0_ref
    and quantize_row_q8_K_ref in ggml-quants.c.
    """
    import torch

    if kind.partition("_")[0] in ("fp8", "int8", "mxfp4", "nvfp4"):
        return compressed_activations(x, kind)
    if kind in ("f16", "bf16"):
        return x.to(torch.float16 if kind == "f16" else torch.bfloat16).float()
    blocks = x.unflatten(-1, (-1, 32 if kind == "q8_0" else 256))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    whole = torch.round(blocks / torch.where(scale == 0, 1, scale)).clamp(-127, 127)
    return (whole * (scale.half().float() if kind == "q8_0" else scale)).flatten(-2)


def on_e4m3(x: "torch.Tensor", scale: float) -> "torch.Tensor":
    """``x`` over ``scale``, at most 448, to the nearest number of E4M3, half to even, times ``scale``; each
    step in the dtype of ``x``. Source: compressed-tensors 0.20, ``fake_quantize``; FP8 caches of vLLM."""
    import torch

    return (x / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype) * scale


def compressed_activations(x: "torch.Tensor", kind: str) -> "torch.Tensor":
    """``x`` (..., columns) float32, rounded with scales from its own values, as compressed-tensors does it:

    ``fp8_token``, ``int8_token``: one scale for each token, max|x| / 448 and max|x| / 127.5; a matrix without
    a batch (tokens, columns) has one scale in all, as in the library; ``fp8_row``, ``int8_row``: one for each
    token always, as in vLLM's kernels. ``nvfp4_g16_S``: E2M1 with scales of E4M3 over S for each 16 columns.
    ``fp8_g128``: for each 128 columns. ``mxfp4_g32``: E2M1 with a power of two for each 32 columns, that of
    max|x| (1.75 and more of one count as the next) over 4. All round to nearest, half to even. Source:
    compressed-tensors 0.20, ``compute_dynamic_scales_and_zp``, ``generate_mx_scales``.
    """
    import torch

    form, part, *rest = kind.split("_")
    size = {"g128": 128, "g32": 32, "g16": 16}.get(part, x.shape[-1])
    grouped = x.unflatten(-1, (-1, size))
    largest = grouped.abs().amax(-1, keepdim=True)
    if part == "token" and x.ndim < 3:
        largest = largest.amax().expand_as(largest)
    if form == "nvfp4":
        whole = float(rest[0])
        scale = (largest / E2M1_MAX * whole).clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)
        scale = torch.where(scale == 0, 0.125, scale) / whole
        return (nearest_e2m1(grouped / scale) * scale).flatten(-2)
    if form == "mxfp4":
        mantissa, exponent = torch.frexp(largest)
        exponent = torch.where(largest > 0, exponent - 1 + (mantissa >= 0.875) - 2, -127)
        scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(-127, 127))
        return (nearest_e2m1(grouped / scale) * scale).flatten(-2)
    scale = largest / (E4M3_MAX if form == "fp8" else 127.5)
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    if form == "fp8":
        held = (grouped / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)
    else:
        held = (grouped / scale).clamp(-128, 127).round()
    return (held * scale).flatten(-2)
