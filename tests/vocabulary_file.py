"""A GGUF file with a vocabulary and no tensors, for llama.cpp to load: what the tests of tokenizers compare
with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf


def write_vocabulary(path: Path, kvs: dict[str, tuple[Any, gguf.GGUFValueType]]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (
        ("context_length", 64),
        ("embedding_length", 32),
        ("block_count", 1),
        ("feed_forward_length", 32),
    ):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, (value, kind) in kvs.items():
        if kind is gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Vocabulary:
    """llama.cpp's tokenizer of a file; ``tokenize`` adds and parses special tokens, as the tokenizers library
    does."""

    def __init__(self, path: Path):
        import llama_cpp

        from quantize.kernels.llamacpp import library

        library()
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self._lib = llama_cpp
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            from quantize.kernels.llamacpp import last_error

            raise AssertionError(f"llama.cpp does not load {path}: {last_error()}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        data = text.encode()
        ids = (self._lib.llama_token * (len(data) + 16))()
        count = self._lib.llama_tokenize(
            self._vocab, data, len(data), ids, len(ids), add_special, parse_special
        )
        assert count >= 0
        return list(ids[:count])

    def ends(self, number: int) -> bool:
        """Whether a token ends generation."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, number))

    def close(self) -> None:
        self._lib.llama_model_free(self._model)


def tokenizer_of(path: Path, kvs: dict[str, tuple[Any, gguf.GGUFValueType]]) -> Callable[[str], list[int]]:
    write_vocabulary(path, kvs)
    return Vocabulary(path).tokenize


def open_folder(folder: Path, *, rows: int | None = None, **config: Any) -> Any:
    """A Checkpoint of tokenizer files alone; ``rows``: the rows of an embedding that is not there."""
    from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo

    name = "model.embed_tokens.weight"
    tensors = {name: TensorInfo(name, (rows, 8), "F32")} if rows else {}
    return Checkpoint(folder, str(folder), None, config, tensors)
