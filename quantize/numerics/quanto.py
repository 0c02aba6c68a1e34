"""Reading optimum-quanto's weights: affine groups of 4 or 2 bits, and 8-bit rows of integers or float8.

Written from the format on disk. Source: optimum-quanto 0.2.7, ``PackedTensor``, ``WeightQBitsTensor``,
``WeightQBytesTensor`` (matched against in tests); float8 E4M3FN: OCP 8-bit Floating Point Specification, rev.
1.0, section 5.
"""

import numpy as np


def unpack_rows(packed: np.ndarray, bits: int, rows: int) -> np.ndarray:
    """Integers of ``bits`` bits from a uint8 array (p, g): bit field i of packed row r is row ``i * p + r``.
    -> uint8 (rows, g).

    Errors: ValueError where ``packed`` does not hold ``rows`` rows.
    """
    fields = 8 // bits
    if -(-rows // fields) != packed.shape[0]:
        raise ValueError(f"{packed.shape[0]} packed rows cannot hold {rows} rows of {bits} bits")
    shifts = (np.arange(fields, dtype=np.uint8) * bits)[:, None, None]
    spread = (packed[None] >> shifts) & np.uint8(2**bits - 1)
    unpacked: np.ndarray = spread.reshape(fields * packed.shape[0], packed.shape[1])[:rows]
    return unpacked


def dequantize_groups(
    packed: np.ndarray, scale: np.ndarray, shift: np.ndarray, bits: int, shape: tuple[int, int]
) -> np.ndarray:
    """packed uint8 (p, g), scale and shift (n, 1) for n groups of g consecutive weights of a row -> float32
    ``shape``.

    ``weight = scale * q - shift`` for a floating shift, ``scale * (q - shift)`` for an integer one.
    """
    groups = shape[0] * shape[1] // packed.shape[1]
    q = unpack_rows(packed, bits, groups).astype(np.float32)
    scale = scale.astype(np.float32).reshape(groups, 1)
    if np.issubdtype(shift.dtype, np.floating):
        values = scale * q - shift.astype(np.float32).reshape(groups, 1)
    else:
        values = scale * (q - shift.astype(np.float32).reshape(groups, 1))
    return values.reshape(shape)


def dequantize_rows(data: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """data (out, in) int8, or float8 E4M3FN bits as uint8; scale (out, 1), or () for a matrix of one row ->
    float32 (out, in)."""
    values = FLOAT8_E4M3FN[data] if data.dtype == np.uint8 else data.astype(np.float32)
    result: np.ndarray = values * scale.astype(np.float32)
    return result


def _float8_table() -> np.ndarray:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[code & 127 == 127] = np.nan
    return np.where(code >= 128, -magnitude, magnitude).astype(np.float32)


#: value of each of the 256 codes; 0x7F and 0xFF are NaN, there is no infinity
FLOAT8_E4M3FN = _float8_table()
