"""A tiny GGUF taken apart and put together again byte by byte, so that any field can say anything."""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf import GGUFValueType as V

from quantize.gguf.container.reader import read_gguf

CODES = {
    V.UINT8: "B", V.INT8: "b", V.UINT16: "H", V.INT16: "h", V.UINT32: "I", V.INT32: "i", V.FLOAT32: "f",
    V.BOOL: "?",
    V.UINT64: "Q", V.INT64: "q", V.FLOAT64: "d",
}  # fmt: skip
#: what each metadata field is set to: (type, element type of arrays, value)
HOSTILE: tuple[tuple[V, V | None, Any], ...] = (
    (V.UINT32, None, 0), (V.UINT32, None, 1), (V.UINT32, None, 3), (V.UINT32, None, 2**31), (V.UINT32, None,
    2**32 - 1),
    (V.INT32, None, -1), (V.UINT64, None, 2**63), (V.INT64, None, -(2**63)), (V.FLOAT32, None, 3e38),
    (V.FLOAT32, None, float("nan")), (V.FLOAT32, None, float("inf")), (V.FLOAT32, None, 0.0), (V.FLOAT64,
    None, 1e308),
    (V.BOOL, None, True), (V.STRING, None, ""), (V.STRING, None, "x"), (V.STRING, None, "x\n\x1b[31m\udcff"),
    (V.ARRAY, V.UINT32, []), (V.ARRAY, V.UINT32, [1, 2, 3]), (V.ARRAY, V.INT32, [-1]), (V.ARRAY, V.STRING,
    ["x", "x"]),
    (V.ARRAY, V.FLOAT32, [float("nan")] * 4),
)  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """``shape`` rows first; ``offset`` None: where it belongs."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: bytes = field(repr=False)
    offset: int | None = None


@dataclass(frozen=True)
class Document:
    """``kvs``: key -> (type, element type of arrays, value). Counts None: the true ones."""

    kvs: dict[str, tuple[V, V | None, Any]]
    tensors: tuple[Tensor, ...]
    version: int = 3
    tensor_count: int | None = None
    kv_count: int | None = None

    @classmethod
    def read(cls, path: Path) -> "Document":
        file = read_gguf(path)
        kvs = {key: (*file.kv_types[key], value) for key, value in file.kvs.items()}
        tensors = tuple(
            Tensor(t.name, t.shape, int(t.kind), file.raw(t.name).tobytes()) for t in file.tensors.values()
        )
        return cls(kvs, tensors)

    def with_kv(self, key: str, value: tuple[V, V | None, Any] | None) -> "Document":
        kvs = {**self.kvs, key: value} if value else {k: v for k, v in self.kvs.items() if k != key}
        return replace(self, kvs=kvs)

    def with_tensor(self, index: int, **changes: Any) -> "Document":
        tensors = list(self.tensors)
        tensors[index] = replace(tensors[index], **changes)
        return replace(self, tensors=tuple(tensors))

    def to_bytes(self) -> bytes:
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.kvs) if self.kv_count is None else self.kv_count,
        )
        head = bytearray(b"GGUF" + struct.pack("<IQQ", self.version, *counts))
        for key, (kind, element, value) in self.kvs.items():
            head += _string(key) + struct.pack("<I", kind) + _value(kind, element, value)
        data = bytearray()
        for tensor in self.tensors:
            data += b"\0" * (-len(data) % 32)
            offset = len(data) if tensor.offset is None else tensor.offset
            data += tensor.data
            head += _string(tensor.name) + struct.pack(
                f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1]
            )
            head += struct.pack("<IQ", tensor.kind, offset)
        return bytes(head + b"\0" * (-len(head) % 32) + data)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: V, element: V | None, value: Any) -> bytes:
    if kind is V.STRING:
        return _string(value)
    if kind is not V.ARRAY:
        return struct.pack("<" + CODES[kind], value)
    assert element is not None
    head = struct.pack("<IQ", element, len(value))
    return head + b"".join(
        _string(v) if element is V.STRING else struct.pack("<" + CODES[element], v) for v in value
    )


def changed(document: Document) -> Iterator[tuple[str, bytes]]:
    """One thing wrong at a time: a metadata field, a tensor's entry, a count, the end."""
    extra = [key for key in OTHER_KEYS if key not in document.kvs]
    architecture = document.kvs["general.architecture"][2]
    for key in [*document.kvs, *(key.replace("ARCH", architecture) for key in extra)]:
        for value in HOSTILE:
            yield f"{key}={value[0].name}:{value[2]!r}", document.with_kv(key, value).to_bytes()
        if key in document.kvs:
            yield f"{key} left out", document.with_kv(key, None).to_bytes()
            yield from _arrays(document, key)
    for index, tensor in enumerate(document.tensors):
        for name, changes in _tensor_changes(tensor, document.tensors):
            yield f"{tensor.name} {name}", document.with_tensor(index, **changes).to_bytes()
        left = document.tensors[:index] + document.tensors[index + 1 :]
        yield f"{tensor.name} left out", replace(document, tensors=left).to_bytes()
    yield (
        "a tensor more",
        replace(document, tensors=(*document.tensors, Tensor("more", (32,), 0, b"\0" * 128))).to_bytes(),
    )
    for count in (0, 1, 2**16, 2**31, 2**32, 2**62, 2**63, 2**64 - 1):
        yield f"{count} tensors", replace(document, tensor_count=count).to_bytes()
        yield f"{count} entries", replace(document, kv_count=count).to_bytes()
    for version in (0, 1, 2, 4, 2**31, 3 << 24):
        yield f"version {version}", replace(document, version=version).to_bytes()
    whole = document.to_bytes()
    for part in range(1, 64):
        yield f"cut at {part}/64", whole[: len(whole) * part // 64]


#: what llama.cpp and the way back read where it is there; ARCH is the file's architecture
OTHER_KEYS = (
    "ARCH.expert_count", "ARCH.expert_used_count", "ARCH.rope.scaling.type", "ARCH.rope.scaling.factor",
    "ARCH.rope.dimension_sections", "ARCH.attention.sliding_window", "ARCH.attention.sliding_window_pattern",
    "ARCH.attention.key_length_mla", "ARCH.pooling_type", "general.alignment", "split.count", "split.no",
    "tokenizer.ggml.token_type_count", "tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.eot_token_id", "tokenizer.chat_template", "tokenizer.chat_templates",
    "general.base_model.count", "general.tags",
)  # fmt: skip


def _arrays(document: Document, key: str) -> Iterator[tuple[str, bytes]]:
    kind, element, values = document.kvs[key]
    if kind is not V.ARRAY or len(values) < 2:
        return
    variants = {
        "one less": values[:-1], "one more": [*values, values[-1]], "doubled": [values[-1], *values[1:]],
        "all alike": [values[0]] * len(values), "broken": ["\udcff",
        *values[1:]] if element is V.STRING else values[::-1],
        "of nothing": [type(values[0])()] * len(values),
    }  # fmt: skip
    for name, new in variants.items():
        yield f"{key} {name}", document.with_kv(key, (kind, element, new)).to_bytes()


def _tensor_changes(tensor: Tensor, all_of_them: tuple[Tensor, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    first, last = tensor.shape[0], tensor.shape[-1]
    for shape in ((), (0,), (2**31, last), (2**62, 4), (2**32, 2**32), (1,) * 5, (*tensor.shape, 1),
    tensor.shape[::-1],
                  (first, max(1, last // 2)), (max(1, first // 2), *tensor.shape[1:])):  # fmt: skip
        yield f"of shape {shape}", {"shape": shape}
    for kind in (*range(45), 2**31, 2**32 - 1):
        yield f"of type {kind}", {"kind": kind}
    for offset in (1, 32, 2**31, 2**63, 2**64 - 32):
        yield f"at {offset}", {"offset": offset}
    yield "called like another", {"name": next(t.name for t in all_of_them if t is not tensor)}
    yield "with a strange name", {"name": "\x1b[31mx\n"}
    yield "of NaN", {"data": b"\xff" * len(tensor.data)}


def tiny_gguf(
    folder: Path, make_checkpoint: Callable[..., Path], recipe: str = "gguf-f32", **config: Any
) -> Path:
    """A Llama of 2 layers and 300 tokens, converted by the project itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from quantize import convert
    from quantize.recipe import RunOptions

    source = make_checkpoint(**{
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
        "max_position_embeddings": 64,
        **config,
    })  # fmt: skip
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the rain in the hills and the road to the river " * 20], trainer)
    tokenizer.save(str(source / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    made = convert(source, recipe, folder, verify="none", run=RunOptions(threads=1, progress=False)).folder
    return next(made.glob("*.gguf"))


def mixture(document: Document, experts: int = 4) -> Document:
    """The same model with its feed-forward as ``experts`` experts, all alike."""
    tensors: list[Tensor] = []
    for tensor in document.tensors:
        block, _, name = tensor.name.partition(".ffn_")
        if name and not name.startswith("norm"):
            stacked = f"{block}.ffn_{name.replace('.weight', '_exps.weight')}"
            tensors.append(
                replace(tensor, name=stacked, shape=(experts, *tensor.shape), data=tensor.data * experts)
            )
        else:
            tensors.append(tensor)
        if name.startswith("norm"):
            width = tensor.shape[0]
            tensors.append(
                Tensor(f"{block}.ffn_gate_inp.weight", (experts, width), 0, b"\0" * (4 * experts * width))
            )
    counts = {"llama.expert_count": experts, "llama.expert_used_count": 2}
    return replace(
        document,
        kvs={**document.kvs, **{k: (V.UINT32, None, n) for k, n in counts.items()}},
        tensors=tuple(tensors),
    )


def sentencepiece(document: Document) -> Document:
    """The same model with a vocabulary of scored pieces."""
    kvs = {key: value for key, value in document.kvs.items() if not key.startswith("tokenizer.ggml.")}
    count = len(document.kvs["tokenizer.ggml.tokens"][2])
    pieces = ["▁", "t", "h", "e", "r", "a", "i", "n", "th", "he", "the", "▁the", "ra", "in", "rain", "▁rain"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    tokens += [f"x{n}" for n in range(count - len(tokens))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (count - 259)]
    scores = [0.0] * 259 + [-float(n) for n in range(count - 259)]
    kvs |= {
        "tokenizer.ggml.model": (V.STRING, None, "llama"), "tokenizer.ggml.pre": (V.STRING, None, "default"),
        "tokenizer.ggml.tokens": (V.ARRAY, V.STRING, tokens), "tokenizer.ggml.scores": (V.ARRAY, V.FLOAT32,
        scores),
        "tokenizer.ggml.token_type": (V.ARRAY, V.INT32, kinds), "tokenizer.ggml.bos_token_id": (V.UINT32,
        None, 1),
        "tokenizer.ggml.eos_token_id": (V.UINT32, None, 2), "tokenizer.ggml.unknown_token_id": (V.UINT32,
        None, 0),
        "tokenizer.ggml.add_bos_token": (V.BOOL, None, True),
    }  # fmt: skip
    return replace(document, kvs=kvs)
