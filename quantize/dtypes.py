"""Types of stored numbers: what safetensors, torch and numpy call them, and the bits that one takes."""

import numpy as np

#: every type that safetensors has
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
BYTES = {dtype: bits // 8 for dtype, bits in BITS.items() if bits % 8 == 0}
#: what numpy has no type for is given as bits
NUMPY: dict[str, type[np.generic]] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "C64": np.complex64,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
    "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8, "F8_E4M3FNUZ": np.uint8,
    "F8_E5M2FNUZ": np.uint8,
}  # fmt: skip
#: torch's name, which config.json and recipes use too
TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
STORED = {torch: stored for stored, torch in TORCH.items()}
#: what an unquantized weight may be stored as
FLOATS = ("F64", "F32", "F16", "BF16")
#: what a model is written in and computed in, by torch's names
DENSE = ("float32", "float16", "bfloat16")


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Of one of ``FLOATS``, as ``NUMPY`` holds it; exact but for F64."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def dense(dtype: str, otherwise: str) -> str:
    """torch's name of ``dtype`` where it is one of ``DENSE``."""
    name = TORCH.get(dtype, "")
    return name if name in DENSE else otherwise
