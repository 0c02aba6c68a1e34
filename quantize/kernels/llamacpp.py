"""The one binding to llama.cpp, through llama-cpp-python: the two libraries, its log, its models.

ctypes releases the GIL around every call, so block quantizers run on as many cores as there are Python
threads.
"""

import ctypes
import os
import re
from collections import deque
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from quantize.errors import BadInput, StepFailed
from quantize.kernels.block_types import Type
from quantize.terminal import printable

_log: deque[str] = deque(maxlen=10_000)
_callbacks: list[Any] = []  # llama.cpp keeps a pointer to the function: so must we
_echo: int | None = None


@cache
def library() -> Any:
    """The ``llama_cpp`` module, its log caught. Errors: ImportError where llama-cpp-python is not
    installed."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def keep(level: int, text: bytes, user_data: Any) -> None:
        if _echo is not None:
            os.write(_echo, text)
        line = text.decode("utf-8", errors="replace")
        if level == 5 and _log:  # GGML_LOG_LEVEL_CONT
            _log[-1] += line
        else:
            _log.append(f"{level}{line}")

    _callbacks.append(keep)
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def ggml_library() -> Any:
    """libggml with the signatures of the functions used here and in ``quantize.kernels.ggml``."""
    library()
    from llama_cpp._ggml import libggml as lib

    i, n, p = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    for name, result, arguments in (
        ("ggml_quantize_init", None, [i]),
        ("ggml_quantize_chunk", ctypes.c_size_t, [i, p, p, n, n, n, p]),
        ("ggml_validate_row_data", ctypes.c_bool, [i, p, ctypes.c_size_t]),
        ("ggml_bf16_to_fp32_row", None, [p, p, n]),
        ("ggml_fp16_to_fp32_row", None, [p, p, n]),
        ("ggml_fp32_to_bf16_row_ref", None, [p, p, n]),
        ("ggml_fp32_to_fp16_row", None, [p, p, n]),
        ("ggml_commit", ctypes.c_char_p, []),
        ("ggml_version", ctypes.c_char_p, []),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def echo_log(descriptor: int) -> None:
    """From here on, write what llama.cpp logs to the open file ``descriptor`` too: it stays where this
    process aborts."""
    global _echo
    _echo = descriptor


def clear_log() -> None:
    library()
    _log.clear()


def log_lines() -> list[str]:
    """What llama.cpp logged since ``clear_log`` (at most the last 10,000 messages)."""
    return [line for line in "".join(entry[1:] for entry in _log).splitlines() if line.strip()]


def last_error() -> str:
    """The reason in llama.cpp's own words: the error logged last that says more than that something
    failed."""
    errors = [line[1:].strip() for line in _log if line[:1] == "4" and line[1:].strip()]
    telling = [line for line in errors if not re.search(r"failed to load model$|unable to load model$", line)]
    chosen = (telling or errors or log_lines() or ["no reason given"])[-1]
    return printable(chosen, 400)


def revision() -> str:
    return f"{ggml_library().ggml_commit().decode()}"


def cpu_features() -> list[str]:
    """CPU features the installed build uses, as llama.cpp names them."""
    return re.findall(r"(\w+) = 1", library().llama_print_system_info().decode())


def describe() -> dict[str, str]:
    """What belongs to every result that llama.cpp had a part in."""
    return {
        "binding": f"llama-cpp-python {metadata.version('llama-cpp-python')}",
        "revision": revision(),
        "ggml": ggml_library().ggml_version().decode(),
        "cpu_features": " ".join(cpu_features()),
    }


class Model:
    """A GGUF file opened by llama.cpp, in this process, which an assertion of llama.cpp would end. Close
    it."""

    def __init__(self, path: Path, *, device: str = "cpu"):
        """``device``: ``cpu``, ``cuda`` or ``auto``. Errors: BadInput, with llama.cpp's own words, where it
        refuses the file."""
        lib = library()
        offloads = bool(lib.llama_supports_gpu_offload())
        if device.startswith("cuda") and not offloads:
            raise BadInput(
                "--device cuda: the installed llama.cpp was built without GPU support; use --device cpu"
            )
        self.gpu = offloads and device != "cpu"
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = -1 if self.gpu else 0
        clear_log()
        self.path = path
        self._model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise BadInput(f"{path}: llama.cpp refuses this file: {last_error()}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocabulary: int = lib.llama_vocab_n_tokens(self._vocab)
        self.trained_context: int = lib.llama_model_n_ctx_train(self._model)
        #: whether any layer keeps a state instead of every token's keys and values
        self.recurrent = bool(
            lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
        )
        self.size_bytes: int = lib.llama_model_size(self._model)

    @property
    def special_tokens(self) -> dict[str, int | None]:
        """``bos_token_id`` and ``eos_token_id``, None where the file names none."""
        lib = library()
        found = {
            "bos_token_id": lib.llama_vocab_bos(self._vocab),
            "eos_token_id": lib.llama_vocab_eos(self._vocab),
        }
        return {name: number if number >= 0 else None for name, number in found.items()}

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """Special tokens in ``text`` are recognised, as the tokenizers library does. Errors: StepFailed."""
        data = text.encode()
        room = len(data) + 16
        for _ in range(2):
            ids = (ctypes.c_int32 * room)()
            count = library().llama_tokenize(self._vocab, data, len(data), ids, room, add_special, True)
            if count >= 0:
                return list(ids[:count])
            room = -count
        raise StepFailed(
            f"{self.path}: llama.cpp cannot tokenize a text of {len(data)} bytes: {last_error()}"
        )

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
        tokens, room = (ctypes.c_int32 * len(ids))(*ids), 16 * len(ids) + 64
        for _ in range(2):
            data = ctypes.create_string_buffer(room)
            count = library().llama_detokenize(self._vocab, tokens, len(ids), data, room, False, True)
            if count >= 0:
                return data.raw[:count].decode(errors="replace")
            room = -count
        raise StepFailed(f"{self.path}: llama.cpp cannot spell {len(ids)} tokens: {last_error()}")

    def describe(self) -> dict[str, str]:
        return describe()

    def context(self, length: int, **settings: Any) -> "Context":
        """Errors: as of ``Context``."""
        return Context(self, length, **settings)

    def close(self) -> None:
        if self._model:
            library().llama_model_free(self._model)
            self._model = None


class Context:
    """A KV cache over ``model`` for ``sequences`` windows of up to ``length`` tokens each.

    ``exact``: F32 cache and no flash attention; otherwise llama.cpp's own defaults, or ``flash`` attention as
    said. ``unified``: one cache of ``length`` tokens for all sequences, in which a token may belong to
    several. At most ``outputs`` positions return logits in one call of ``decode``.
    """

    def __init__(
        self,
        model: Model,
        length: int,
        *,
        sequences: int,
        batch: int,
        outputs: int,
        threads: int,
        exact: bool,
        flash: bool | None = None,
        unified: bool = False,
    ):
        """Errors: StepFailed where llama.cpp cannot make it (memory)."""
        lib = library()
        parameters = lib.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = length if unified else length * sequences, sequences
        parameters.kv_unified = unified
        parameters.n_batch, parameters.n_ubatch = batch, min(batch, parameters.n_ubatch)
        parameters.n_outputs_max = outputs
        parameters.n_threads = parameters.n_threads_batch = threads
        if flash is not None:
            parameters.flash_attn_type = int(flash)
        if exact:
            parameters.type_k = parameters.type_v = int(Type.F32)
            parameters.flash_attn_type = 0
        clear_log()
        self.model, self.length, self.sequences, self.batch_size, self.outputs = (
            model,
            length,
            sequences,
            batch,
            outputs,
        )
        self._context = lib.llama_init_from_model(model._model, parameters)
        if not self._context:
            raise StepFailed(
                f"{model.path}: llama.cpp cannot make a context "
                f"of {length * sequences} tokens: {last_error()}"
            )
        self._batch = lib.llama_batch_init(batch, 0, sequences if unified else 1)

    def clear(self) -> None:
        lib = library()
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)

    def decode(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: Sequence[Sequence[int]] | np.ndarray,
        wanted: np.ndarray,
    ) -> np.ndarray:
        """Process up to ``batch_size`` tokens, each of its sequence (or, in a unified cache, sequences).

        Returns logits (number of ``wanted``, vocabulary) float32 of those wanted, in order.

        The array is valid until the next call. Errors: StepFailed.
        """
        lib, batch, count = library(), self._batch, len(tokens)
        batch.n_tokens = count
        np.ctypeslib.as_array(batch.token, (count,))[:] = tokens
        np.ctypeslib.as_array(batch.pos, (count,))[:] = positions
        np.ctypeslib.as_array(batch.logits, (count,))[:] = wanted
        for index, mine in enumerate(
            sequences[:, None].tolist() if isinstance(sequences, np.ndarray) else sequences
        ):
            batch.n_seq_id[index] = len(mine)
            for place, sequence in enumerate(mine):
                batch.seq_id[index][place] = sequence
        status = lib.llama_decode(self._context, batch)
        if status != 0:
            raise StepFailed(
                f"{self.model.path}: llama.cpp could not process "
                f"{count} tokens (status {status}): {last_error()}"
            )
        rows = int(np.count_nonzero(wanted))
        if rows == 0:
            return np.empty((0, self.model.vocabulary), np.float32)
        pointer = ctypes.cast(lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (rows, self.model.vocabulary))

    def close(self) -> None:
        if self._context:
            library().llama_batch_free(self._batch)
            library().llama_free(self._context)
            self._context = None
