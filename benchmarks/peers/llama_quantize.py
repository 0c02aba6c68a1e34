"""llama.cpp's quantizer of whole files, without its program: what golden tests and peers compare with.

python -m benchmarks.peers.llama_quantize SOURCE TARGET TYPE THREADS
"""

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np

from quantize.errors import StepFailed
from quantize.kernels import llamacpp
from quantize.kernels.block_types import FILE_TYPES, LlamaFileType, Type


def quantize_file(
    source: Path,
    target: Path,
    file_type: LlamaFileType,
    *,
    threads: int = 0,
    importance: dict[str, np.ndarray] | None = None,
    tensor_types: tuple[tuple[str, Type], ...] = (),
    pure: bool = False,
    dry_run: bool = False,
    kvs: dict[str, str | int] | None = None,
) -> None:
    """``llama_model_quantize``: what the llama-quantize program calls.

    ``kvs``: metadata to add, as llama-quantize adds what it knows of an importance matrix.

    Errors: StepFailed with llama.cpp's reason.
    """
    lib = llamacpp.library()
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.pure, parameters.dry_run = (
        int(file_type),
        threads,
        pure,
        dry_run,
    )
    keep: list[Any] = []
    if importance:
        entries = (lib.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            array = np.ascontiguousarray(values, np.float32)
            keep.append(array)
            entry.name, entry.size = name.encode(), array.size
            entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = entries
    if tensor_types:
        overrides = (lib.llama_model_tensor_override * (len(tensor_types) + 1))()
        for override, (pattern, kind) in zip(overrides, tensor_types, strict=False):
            override.pattern, override.type = pattern.encode(), int(kind)
        parameters.tt_overrides = overrides
    if kvs:
        added = (lib.llama_model_kv_override * (len(kvs) + 1))()
        for one, (key, value) in zip(added, kvs.items(), strict=False):
            one.key = key.encode()
            if isinstance(value, int):
                one.tag, one.value.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
            else:
                one.tag, one.value.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
        parameters.kv_overrides = added
    llamacpp.clear_log()
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) != 0:
        raise StepFailed(f"{source}: llama.cpp could not quantize it: {llamacpp.last_error()}")


if __name__ == "__main__":
    given, made, kind_name, thread_count = sys.argv[1:]
    quantize_file(Path(given), Path(made), FILE_TYPES[kind_name].value, threads=int(thread_count))
