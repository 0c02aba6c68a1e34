"""What llama-imatrix collects, from llama.cpp itself: its graph's own products, seen through the callback of
its scheduler."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from quantize.gguf.importance.file import Entry
from quantize.kernels import llamacpp


class Tensor(ctypes.Structure):
    """The head of ggml.h's ``struct ggml_tensor``."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def values(tensor: Tensor, dtype: Any) -> np.ndarray:
    """As an array of up to four dimensions, columns last, over llama.cpp's own memory."""
    shape, strides = list(tensor.ne)[::-1], list(tensor.nb)[::-1]
    span = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + np.dtype(dtype).itemsize
    raw = (ctypes.c_char * span).from_address(tensor.data)
    return np.ndarray(shape, dtype, raw, 0, strides)


def collect(path: Path, ids: np.ndarray) -> dict[str, Entry]:
    """By tools/imatrix/imatrix.cpp's definition: MUL_MAT and MUL_MAT_ID with a block's tensor; ``ids``
    (windows, tokens)."""
    lib = llamacpp.library()
    from llama_cpp._ggml import libggml

    libggml.ggml_op_name.restype, libggml.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}

    def see(address: int, ask: bool, _: Any) -> bool:
        node = Tensor.from_address(address)
        operation = libggml.ggml_op_name(node.op)
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID") or not node.src[0].contents.name.startswith(b"blk."):
            return not ask
        if ask:
            return True
        weight, entering = node.src[0].contents, node.src[1].contents
        assert entering.type == 0
        assert entering.nb[0] == 4
        name, x = weight.name.decode(), values(entering, np.float32).astype(np.float64)
        matrices = weight.ne[2]
        mine, count = (
            sums.setdefault(name, np.zeros((matrices, x.shape[-1]))),
            counts.setdefault(name, np.zeros(matrices, int)),
        )
        if operation == b"MUL_MAT_ID":
            chosen = values(node.src[2].contents, np.int32)[0, 0]  # (tokens, experts used)
            for token, experts in enumerate(chosen):
                for slot, expert in enumerate(experts):
                    mine[expert] += x[0, token, slot % x.shape[2]] ** 2
                    count[expert] += 1
        else:
            for index in range(x.shape[1]):
                mine[index % matrices] += (x[0, index] ** 2).sum(0)
            count += x.shape[1] * x.shape[2] // matrices
        return True

    model = llamacpp.Model(path)
    parameters = lib.llama_context_default_params()
    length = ids.shape[1]
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = 0
    parameters.flash_attn_type = 0
    parameters.cb_eval = lib.ggml_backend_sched_eval_callback(see)
    context = lib.llama_init_from_model(model._model, parameters)
    batch = lib.llama_batch_init(length, 0, 1)
    try:
        for row in ids.tolist():
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            batch.n_tokens = length
            for index, token in enumerate(row):
                batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            assert lib.llama_decode(context, batch) == 0
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        model.close()
    return {name: Entry(sums[name].astype(np.float32), counts[name]) for name in sums}
