"""Reading bitsandbytes' weights: 4-bit blocks (nf4, fp4) with plain or doubly quantized scales, and 8-bit
rows.

Sources: Dettmers et al., QLoRA (arXiv:2305.14314), appendix E (nf4) and section 3 (double quantization);
Dettmers et al., 8-bit Optimizers (arXiv:2110.02861), section 2.1 (dynamic tree quantization); LLM.int8()
(arXiv:2208.07339), equation 4. Layout matched against bitsandbytes 0.50.2 in tests.
"""

import numpy as np

#: quantiles of the standard normal, normalized to [-1, 1], with an exact zero
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip
#: sign, two exponent bits, one mantissa bit, normalized by the largest magnitude (12)
FP4 = np.array(
    [0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], dtype=np.float32
) / np.float32(12)
CODEBOOKS = {"nf4": NF4, "fp4": FP4}


def dynamic_map() -> np.ndarray:
    """The 256 values, ascending, of signed dynamic tree quantization with 7 exponent bits: float32 (256,)."""
    positive = []
    for exponent in range(7):
        edges = np.linspace(0.1, 1, 2**exponent + 1)
        positive.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6))
    magnitudes = np.concatenate(positive)
    return np.sort(np.concatenate([-magnitudes, magnitudes, [0.0, 1.0]])).astype(np.float32)


def dequantize_absmax(codes: np.ndarray, absmax: np.ndarray, offset: float, blocksize: int) -> np.ndarray:
    """Doubly quantized scales: codes uint8 (n,), absmax float32 (ceil(n / blocksize),) -> float32 (n,)."""
    values = dynamic_map()[codes.reshape(-1)]
    scales = np.repeat(absmax.reshape(-1).astype(np.float32), blocksize)[: values.size]
    return values * scales + np.float32(offset)


def dequantize_blocks(
    packed: np.ndarray, absmax: np.ndarray, codebook: np.ndarray, blocksize: int, shape: tuple[int, ...]
) -> np.ndarray:
    """packed uint8 (n / 2,), the earlier weight in the high half; absmax float32, one for ``blocksize``
    weights.

    Returns float32 ``shape``.

    Errors: ValueError where the sizes do not fit one another.
    """
    bytes_ = packed.reshape(-1)
    codes = np.stack([bytes_ >> 4, bytes_ & 15], axis=1).reshape(-1)
    count = int(np.prod(shape))
    if not count <= codes.size <= count + 1 or absmax.size != -(-count // blocksize):
        raise ValueError(
            f"{bytes_.size} bytes and {absmax.size} scales of {blocksize} do not hold {count} weights"
        )
    values = codebook[codes[:count]]
    scales = np.repeat(absmax.reshape(-1).astype(np.float32), blocksize)[:count]
    result: np.ndarray = (values * scales).reshape(shape)
    return result


def dequantize_int8_rows(data: np.ndarray, row_absmax: np.ndarray) -> np.ndarray:
    """data int8 (out, in), row_absmax float32 (out,) -> float32 (out, in)."""
    result: np.ndarray = data.astype(np.float32) * (row_absmax.astype(np.float32) / np.float32(127))[:, None]
    return result
