"""ggml's block quantizers, and its conversions between floats of 16 and of 32 bits."""

from functools import cache

import numpy as np

from quantize.errors import StepFailed
from quantize.kernels.base import BlockQuantizer, too_large
from quantize.kernels.block_types import TENSOR_TYPES, Type, row_bytes
from quantize.kernels.llamacpp import ggml_library, revision


class Ggml(BlockQuantizer):
    """llama.cpp's own: the same bytes as llama-quantize writes."""

    name = "llama.cpp"
    kinds = frozenset(TENSOR_TYPES.values())

    @property
    def version(self) -> str:
        return revision()

    def prepare(self, kind: Type) -> None:
        ggml_library().ggml_quantize_init(int(kind))

    def quantize(
        self, kind: Type, rows: np.ndarray, out: np.ndarray, importance: np.ndarray | None = None
    ) -> None:
        count, columns = rows.shape
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert out.flags.c_contiguous
        assert out.nbytes == count * row_bytes(kind, columns)
        lib = ggml_library()
        weights = importance.ctypes.data if importance is not None else None
        written = lib.ggml_quantize_chunk(
            int(kind), rows.ctypes.data, out.ctypes.data, 0, count, columns, weights
        )
        if written != out.nbytes:
            raise StepFailed(
                f"llama.cpp wrote {written} bytes of {kind.name} where {out.nbytes} were expected"
            )
        if kind is not Type.F32 and not lib.ggml_validate_row_data(int(kind), out.ctypes.data, out.nbytes):
            raise too_large(kind, rows)


GGML = Ggml()


def widen(raw: np.ndarray, out: np.ndarray) -> None:
    """bf16 bit patterns (uint16), float16, float32 or float64 ``raw`` -> float32 ``out`` (same size); exact
    but for float64."""
    lib = ggml_library()
    raw = np.ascontiguousarray(raw)
    if raw.dtype == np.uint16:
        lib.ggml_bf16_to_fp32_row(raw.ctypes.data, out.ctypes.data, raw.size)
    elif raw.dtype == np.float16:
        lib.ggml_fp16_to_fp32_row(raw.ctypes.data, out.ctypes.data, raw.size)
    else:
        np.copyto(out.reshape(raw.shape), raw, casting="same_kind")


@cache
def bf16_to_f16() -> np.ndarray:
    """(65536,) uint16: llama.cpp's F16 bits for each bf16 bit pattern. Looking up is faster than going by
    float32."""
    wide, half = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.uint16)
    widen(np.arange(1 << 16, dtype=np.uint16), wide)
    ggml_library().ggml_fp32_to_fp16_row(wide.ctypes.data, half.ctypes.data, wide.size)
    return half


def round_through(values: np.ndarray, kind: Type) -> None:
    """Round float32 ``values`` in place to what ``kind`` (F16 or BF16) can hold, as a file of that type
    would."""
    half = np.empty(values.size, np.uint16)
    GGML.quantize(kind, values.reshape(1, -1), half.view(np.uint8).reshape(1, -1))
    widen(half if kind is Type.BF16 else half.view(np.float16), values.reshape(-1))
