"""Readers of the weights of compressed-tensors checkpoints, as llm-compressor writes them and vLLM serves
them. numpy only.

Written from the format, so that they can check what the engine writes and what the library unpacks. Of a
linear layer of shape (o, i), with scales of g groups of consecutive inputs:

- float-quantized: ``weight`` F8_E4M3 (o, i), ``weight_scale`` (o, 1), of one element, or of blocks.
- int-quantized: ``weight`` I8 (o, i), ``weight_scale`` (o, 1), (o, g) or of one element, and where zero
  points are not 0, ``weight_zero_point`` I8 of that shape.
- pack-quantized: ``weight_packed`` I32 (o, ceil(i * bits / 32)), codes plus 2**(bits - 1) as a little-endian
  stream along the inputs; ``weight_scale`` (o, g); ``weight_shape``, (o, i); ``weight_zero_point`` I32
  (ceil(o * bits / 32), g), stored like codes, a stream along the outputs; ``weight_g_idx``, the group of each
  input, where groups are not of neighbours.
- nvfp4-pack-quantized: ``weight_packed`` U8 (o, i / 2), two codes of E2M1 a byte, the lower bits first;
  ``weight_scale`` F8_E4M3 (o, i / 16); ``weight_global_scale`` F32, by which scales are divided.
- mxfp4-pack-quantized: the same codes; ``weight_scale`` U8 (o, i / 32), exponents with bias 127.

Source: compressed-tensors' README and docs (vllm-project/compressed-tensors); OCP Microscaling Formats 1.0;
NVIDIA, "Introducing NVFP4".
"""

from collections.abc import Mapping

import numpy as np

from quantize.numerics.fp8 import dequantize_e4m3, e4m3_values, e8m0_values
from quantize.numerics.mxfp4 import VALUES
from quantize.numerics.packing import WORD_BITS, unpack_bits


def dequantize_fp8(codes: np.ndarray, scales: np.ndarray, block: tuple[int, int] | None = None) -> np.ndarray:
    """float32 (o, i) of uint8 ``codes`` (o, i) of E4M3 and float32 ``scales``: (o, 1), one element, or of
    blocks of ``block``, the last ones perhaps cut off; None: as many blocks as there are scales, all equal.

    Each value is rounded once, to float32. Errors: ValueError where shapes do not fit.
    """
    rows, columns = codes.shape
    if scales.size == 1 or scales.shape in ((rows, 1), (rows,)):
        factors = scales.reshape(-1, 1)
        return np.asarray(e4m3_values()[codes] * factors, np.float32)
    if scales.ndim != 2 or 0 in scales.shape:
        raise ValueError(f"scales of shape {list(scales.shape)} for a weight of shape {list(codes.shape)}")
    return dequantize_e4m3(
        codes, scales, block or (-(-rows // scales.shape[0]), -(-columns // scales.shape[1]))
    )


def dequantize_int8(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None = None) -> np.ndarray:
    """float32 (o, i) of int8 ``codes`` (o, i), scales * (code - zero point); ``scales`` and ``zeros`` (o, g)
    or of one element. Errors: ValueError where shapes do not fit."""
    values = codes.astype(np.float32)
    if scales.size == 1:
        off = 0.0 if zeros is None else zeros.astype(np.float32).reshape(())
        return np.asarray((values - off) * scales.reshape(()), np.float32)
    return _scaled(values, scales, zeros)


def dequantize_words(
    words: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray | None,
    shape: tuple[int, int],
    groups_of: np.ndarray | None = None,
) -> np.ndarray:
    """float32 (o, i) = ``shape`` of int32 ``words`` (o, ceil(i * bits / 32)); ``scales`` float32 (o, g);
    ``zeros`` int32 (ceil(o * bits / 32), g), None: 2**(bits - 1), which is a code of 0. ``groups_of`` (i,):
    the group of each input. The bits are those with which ``words`` hold ``shape``.

    Errors: ValueError where shapes do not fit, or the bits are not 2, 4 or 8.
    """
    outputs, inputs = shape
    bits = next((bits for bits in (2, 4, 8) if words.shape == (outputs, -(-inputs * bits // WORD_BITS))), 0)
    if not bits or (bits != 8 and inputs * bits < WORD_BITS):
        raise ValueError(f"words of shape {list(words.shape)} hold no {list(shape)} codes of 2, 4 or 8 bits")
    codes = unpack_bits(np.ascontiguousarray(words.T), bits)[:inputs].T.astype(np.float32)
    middle = np.float32(1 << (bits - 1))
    if zeros is None:
        return _scaled(codes - middle, scales, None, groups_of)
    if zeros.shape != (-(-outputs * bits // WORD_BITS), scales.shape[1]):
        raise ValueError(f"zero points of shape {list(zeros.shape)} for scales of {list(scales.shape)}")
    points = unpack_bits(np.ascontiguousarray(zeros), bits)[:outputs].astype(np.float32)
    return _scaled(codes, scales, points, groups_of)


def dequantize_fp4(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 (o, i) of uint8 ``packed`` (o, i / 2) codes of E2M1 and float32 ``scales`` (o, g). Errors:
    ValueError where shapes do not fit."""
    table = np.array([*VALUES, *(-value for value in VALUES)], np.float32)
    values = np.empty((packed.shape[0], 2 * packed.shape[1]), np.float32)
    values[:, 0::2], values[:, 1::2] = table[packed & 15], table[packed >> 4]
    return _scaled(values, scales, None)


def nvfp4_scales(codes: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """float32 of uint8 ``codes`` of E4M3, divided by the tensor's scale ``whole`` (one element)."""
    return np.asarray(e4m3_values()[codes] / np.float32(whole.reshape(())), np.float32)


def mxfp4_scales(codes: np.ndarray) -> np.ndarray:
    """float32 of uint8 exponents ``codes``."""
    return e8m0_values(codes)


def _scaled(
    values: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, groups_of: np.ndarray | None = None
) -> np.ndarray:
    """scales * (values - zeros) of values (o, i) and the others (o, g), in place. Errors: ValueError where
    the groups do not divide the inputs."""
    outputs, inputs = values.shape
    if scales.ndim != 2 or scales.shape[0] != outputs or not scales.shape[1] or inputs % scales.shape[1]:
        raise ValueError(f"scales of shape {list(scales.shape)} for a weight of shape {[outputs, inputs]}")
    if zeros is not None and zeros.shape != scales.shape:
        raise ValueError(f"zero points of shape {list(zeros.shape)} for scales of {list(scales.shape)}")
    if groups_of is not None:
        if groups_of.shape != (inputs,) or groups_of.min() < 0 or groups_of.max() >= scales.shape[1]:
            raise ValueError(f"groups of inputs do not map {inputs} inputs to {scales.shape[1]} groups")
        values -= 0 if zeros is None else zeros[:, groups_of].astype(np.float32)
        values *= scales[:, groups_of]
        return values
    grouped = values.reshape(outputs, scales.shape[1], -1)
    if zeros is not None:
        grouped -= zeros[..., None].astype(np.float32)
    grouped *= scales[..., None]
    return values


def dequantize(
    parts: Mapping[str, np.ndarray], types: Mapping[str, str], block: tuple[int, int] | None
) -> np.ndarray:
    """One weight, float32 (o, i), of its stored tensors: ``parts`` by the last part of their names, as
    ``quantize.dtypes.NUMPY`` holds them but ``weight_scale`` of a float type as float32; ``types``: what
    safetensors calls them. ``block``: of scales of blocks, as ``dequantize_fp8``.

    The types say which of the forms above it is. Errors: ValueError where it is none, or shapes do not fit.
    """
    scales, zeros = parts["weight_scale"], parts.get("weight_zero_point")
    packed = parts.get("weight_packed")
    if packed is None:
        codes = parts["weight"]
        if types["weight"] == "F8_E4M3":
            return dequantize_fp8(codes, scales, block)
        if types["weight"] == "I8":
            return dequantize_int8(codes, scales, zeros)
        raise ValueError(f"a weight stored as {types['weight']} with a scale")
    if types["weight_packed"] == "I32":
        outputs, inputs = (int(size) for size in parts["weight_shape"])
        return dequantize_words(packed, scales, zeros, (outputs, inputs), parts.get("weight_g_idx"))
    if types["weight_packed"] != "U8":
        raise ValueError(f"a packed weight stored as {types['weight_packed']}")
    if types["weight_scale"] == "F8_E4M3":
        return dequantize_fp4(packed, nvfp4_scales(scales, parts["weight_global_scale"]))
    return dequantize_fp4(packed, mxfp4_scales(scales))
