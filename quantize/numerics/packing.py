"""Readers of the packed integer formats that GPTQ and AWQ checkpoints are stored in, and the packing that
they undo. numpy only.

Written from the formats, so that they can check what the engine writes and what the runtime computes:

- AutoGPTQ ("v1"): a linear layer of shape (out, in) is ``qweight`` int32 (in * bits / 32, out), ``qzeros``
  int32 (groups, out * bits / 32), ``scales`` (groups, out) and ``g_idx`` int32 (in,), the group of each
  input. Codes are a little-endian bit stream along ``in`` (weights) or ``out`` (zero points): a 3-bit code
  may straddle two words. The stored zero point is one less than the one meant. Source: AutoGPTQ 0.7.1,
  ``QuantLinear.pack``; GPTQ, Frantar et al. 2022.
- AutoAWQ ("gemm"): ``qweight`` int32 (in, out * 4 / 32), ``qzeros`` int32 (groups, out * 4 / 32), ``scales``
  (groups, out), both packed along ``out``, eight codes to a word in the order 0 2 4 6 1 3 5 7; zero points as
  they are.
  Source: AutoAWQ 0.2.9, ``WQLinear_GEMM``; AWQ, Lin et al. 2023.
"""

import numpy as np

#: position p of a word (4 bits, from the least significant) holds the code of output AWQ_ORDER[p]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
WORD_BITS = 32


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned ``codes`` (n, columns) < 2**bits -> int32 words (n * bits / 32, columns), a little-endian
    stream down each column.

    Errors: ValueError where a code does not fit, or n * bits is not a multiple of 32.
    """
    if (codes.shape[0] * bits) % WORD_BITS:
        raise ValueError(f"{codes.shape[0]} codes of {bits} bits do not fill whole {WORD_BITS}-bit words")
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= 1 << bits):
        raise ValueError(f"a code outside 0..{(1 << bits) - 1} cannot be packed in {bits} bits")
    period = _period(bits)
    grouped = codes.astype(np.uint32).reshape(-1, period, codes.shape[1])
    words = np.zeros((grouped.shape[0], period * bits // WORD_BITS, codes.shape[1]), np.uint32)
    for index in range(period):
        word, shift = divmod(index * bits, WORD_BITS)
        words[:, word] |= grouped[:, index] << np.uint32(shift)
        if shift + bits > WORD_BITS:
            words[:, word + 1] |= grouped[:, index] >> np.uint32(WORD_BITS - shift)
    return words.reshape(-1, codes.shape[1]).view(np.int32)


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 ``codes`` (rows, n) < 2**bits -> int32 words (rows, n * bits / 32), a little-endian stream along
    each row, for 4 and 8 bits: ``pack_bits`` of the transposed, transposed, without moving columns.

    Errors: ValueError where a code does not fit, or n * bits is not a multiple of 32.
    """
    if bits not in (4, 8) or (codes.shape[1] * bits) % WORD_BITS:
        raise ValueError(f"{codes.shape[1]} codes of {bits} bits do not fill whole {WORD_BITS}-bit words")
    if codes.size and int(codes.max()) >= 1 << bits:
        raise ValueError(f"a code outside 0..{(1 << bits) - 1} cannot be packed in {bits} bits")
    whole = np.ascontiguousarray(codes)
    if bits == 4:
        whole = whole[:, 0::2] | whole[:, 1::2] << 4
    return whole.view("<i4")


def unpack_bits(words: np.ndarray, bits: int) -> np.ndarray:
    """int32 ``words`` (n, columns) -> uint8 codes (n * 32 / bits, columns): the inverse of ``pack_bits``.

    Errors: ValueError where the words are not int32 or do not hold a whole number of codes.
    """
    if words.dtype != np.int32:
        raise ValueError(f"packed words are {words.dtype}, expected int32")
    period = _period(bits)
    step = period * bits // WORD_BITS
    if words.shape[0] % step:
        raise ValueError(
            f"{words.shape[0]} words do not hold a whole number "
            f"of {bits}-bit codes (expected a multiple of {step})"
        )
    grouped = words.view(np.uint32).reshape(-1, step, words.shape[1])
    codes = np.empty((grouped.shape[0], period, words.shape[1]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for index in range(period):
        word, shift = divmod(index * bits, WORD_BITS)
        value = grouped[:, word] >> np.uint32(shift)
        if shift + bits > WORD_BITS:
            value = value | (grouped[:, word + 1] << np.uint32(WORD_BITS - shift))
        codes[:, index] = value & mask
    return codes.reshape(-1, words.shape[1])


def _period(bits: int) -> int:
    """Codes after which the stream is at a word boundary again."""
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"{bits} bits: expected 2, 3, 4 or 8")
    return WORD_BITS if bits == 3 else WORD_BITS // bits


def gptq_zeros(qzeros: np.ndarray, bits: int, less: int = 1) -> np.ndarray:
    """Zero points (groups, out) as meant, int32 in 1..2**bits, of v1 ``qzeros`` (groups, out * bits / 32);
    ``less`` 0: of version 2, which stores them as they are.

    A layer whose zero point is 0 cannot be said in v1: the stored -1 wraps to 2**bits - 1, which reads as
    2**bits here and in readers that add without wrapping, and as 0 in others.
    """
    return unpack_bits(np.ascontiguousarray(qzeros.T), bits).T.astype(np.int32) + less


def dequantize_gptq(
    qweight: np.ndarray,
    qzeros: np.ndarray,
    scales: np.ndarray,
    g_idx: np.ndarray | None,
    bits: int,
    group_size: int,
    less: int = 1,
) -> np.ndarray:
    """Weights (out, in) float32 of one v1 layer: scale[g, o] * (code[i, o] - zero[g, o]) with g = g_idx[i].
    ``less``: as of ``gptq_zeros``.

    ``g_idx`` None: consecutive groups of ``group_size`` (-1: one). Products are of float32 scales, rounded
    once.

    Errors: ValueError where shapes contradict one another or a group index is out of range.
    """
    codes = unpack_bits(qweight, bits)
    zeros = gptq_zeros(qzeros, bits, less)
    inputs, outputs = codes.shape
    groups = scales.shape[0]
    if scales.shape != (groups, outputs) or zeros.shape != (groups, outputs):
        raise ValueError(
            f"scales {scales.shape} and zero points {zeros.shape} "
            f"do not fit {outputs} outputs in {groups} groups"
        )
    index = np.arange(inputs) // (group_size if group_size > 0 else inputs) if g_idx is None else g_idx
    if index.shape != (inputs,) or index.min() < 0 or index.max() >= groups:
        raise ValueError(
            f"g_idx {index.shape} in {index.min()}..{index.max()} "
            f"does not map {inputs} inputs to {groups} groups"
        )
    scale = scales.astype(np.float32)
    weights = (codes.astype(np.int32) - zeros[index]).astype(np.float32)
    weights *= scale[index]
    return np.ascontiguousarray(weights.T)


def dequantize_awq(
    qweight: np.ndarray, qzeros: np.ndarray, scales: np.ndarray, group_size: int
) -> np.ndarray:
    """Weights (out, in) float32 of one 4-bit AWQ GEMM layer: scale[g, o] * (code[i, o] - zero[g, o]) with g =
    i // group_size.

    Errors: ValueError where shapes contradict one another.
    """
    codes, zeros = unpack_awq(qweight), unpack_awq(qzeros)
    inputs, outputs = codes.shape
    size = group_size if group_size > 0 else inputs
    if inputs % size or scales.shape != (inputs // size, outputs) or zeros.shape != scales.shape:
        wanted = f"{inputs} inputs in groups of {size} and {outputs} outputs"
        raise ValueError(f"scales {scales.shape} and zero points {zeros.shape} do not fit {wanted}")
    difference = codes.reshape(-1, size, outputs).astype(np.float32) - zeros[:, None].astype(np.float32)
    weights = (difference * scales[:, None].astype(np.float32)).reshape(inputs, outputs)
    return np.ascontiguousarray(weights.T)


def unpack_awq(words: np.ndarray) -> np.ndarray:
    """int32 ``words`` (rows, out / 8) in AWQ's order -> uint8 codes (rows, out)."""
    positions = unpack_bits(np.ascontiguousarray(words.T), 4).T.reshape(words.shape[0], -1, 8)
    codes = np.empty_like(positions)
    codes[:, :, list(AWQ_ORDER)] = positions
    return codes.reshape(words.shape[0], -1)


def pack_awq(codes: np.ndarray) -> np.ndarray:
    """The inverse of ``unpack_awq``. Errors: ValueError where the outputs are not a multiple of 8 or a code
    exceeds 15."""
    if codes.shape[1] % 8:
        raise ValueError(f"{codes.shape[1]} outputs: AWQ packs eight to a word")
    ordered = codes.reshape(codes.shape[0], -1, 8)[:, :, list(AWQ_ORDER)].reshape(codes.shape)
    return np.ascontiguousarray(pack_bits(np.ascontiguousarray(ordered.T), 4).T)


def lift_zero_points(
    qweight: np.ndarray, qzeros: np.ndarray, g_idx: np.ndarray, bits: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Make zero points of 0 expressible in v1: they become 1 and their codes move up with them, the top code
    staying at the top.

    ``qzeros`` come with the -1 already applied to whole words (GPTQModel's v1 export), where a 0 has borrowed
    from its neighbour. Returns (qweight, qzeros, how many (group, output) pairs changed); the inputs
    unchanged where none did. The changed pairs lose their highest level: an error of at most one step, for
    weights that used it.
    """
    if bits == 3:  # exported code by code, wrapping: no borrow
        meant = (unpack_bits(np.ascontiguousarray(qzeros.T), bits).T.astype(np.int32) + 1) % (1 << bits)
    else:
        ones = np.uint32(sum(1 << shift for shift in range(0, WORD_BITS, bits)))
        words = (qzeros.view(np.uint32) + ones).view(np.int32)
        meant = unpack_bits(np.ascontiguousarray(words.T), bits).T.astype(np.int32)
    changed = meant == 0
    if not changed.any():
        return qweight, qzeros, 0
    codes = unpack_bits(qweight, bits).astype(np.int32)
    codes = np.minimum(codes + changed[g_idx], (1 << bits) - 1)
    stored = np.maximum(meant, 1) - 1
    packed = np.ascontiguousarray(pack_bits(np.ascontiguousarray(stored.T), bits).T)
    return pack_bits(codes, bits), packed, int(changed.sum())
