"""From a GGUF file to the Hugging Face checkpoint it stands for: a folder that every method, and
transformers, can read.

Tensors that the file holds in F32, F16 or BF16 keep their type, quantized ones are dequantized to float32, so
that nothing is rounded on the way; one tensor is in memory at a time.
"""

import json
from collections import Counter, OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.gguf.container.reader import GgufFile, read_gguf
from quantize.gguf.families.base import Mapped
from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.decoder import Family, OneOf, Rule, make_plan, source_names, target_name
from quantize.gguf.families.operations import COPY
from quantize.gguf.families.plan import KNOWN
from quantize.gguf.to_checkpoint.card import write_card
from quantize.gguf.to_checkpoint.config import to_config
from quantize.gguf.to_checkpoint.tokenizer import write_tokenizer
from quantize.gguf.tokenizer.chat_templates import end_tokens, token_of
from quantize.kernels.block_types import Type
from quantize.staging import held_until_exit
from quantize.terminal import printable

STORED = {Type.F32: "F32", Type.F16: "F16", Type.BF16: "BF16"}
NUMPY = {Type.F32: "<f4", Type.F16: "<f2", Type.BF16: "<u2"}
# GGUF tensors of which the pieces are kept: gate, up and down of stacked experts come apart one expert at a
# time
KEPT = 4

_made: dict[tuple[str, int, int], tuple[Path, str]] = {}


def materialise(path: Path) -> tuple[Path, str]:
    """A temporary folder with the checkpoint of ``path``, removed when the program ends; the same file gives
    the same folder. And how many of the file's tensors are quantized, by type ("12 of Q4_K, 2 of Q6_K");
    empty where none is.

    Errors: as of ``write_checkpoint``.
    """
    state = path.stat()
    key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
    if key not in _made or not _made[key][0].is_dir():
        file = read_gguf(path)
        to_config(file)  # refuses before anything is written
        folder = held_until_exit("quantwright-gguf-")
        write_checkpoint(file, folder)
        kinds = Counter(tensor.kind.name for tensor in file.tensors.values() if tensor.kind not in STORED)
        _made[key] = folder, ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common())
    return _made[key]


def write_checkpoint(file: GgufFile, folder: Path) -> None:
    """Write config, tensors, tokenizer, chat templates and model card into ``folder``.

    Errors: Unsupported for an architecture or tokenizer with no way back, or a tensor that has no place;
    BadInput where metadata and tensors contradict each other; StepFailed where the disk is full.
    """
    from quantize.checkpoint.tensors import Entry, write_config, write_folder

    config = to_config(file)
    mapped = plan_back(file, config)
    owner = {source: (m, index) for m in mapped for index, source in enumerate(m.sources)}
    entries = [Entry(source, _dtype(file, m), shape) for m in mapped for source, shape in _source_shapes(m)]
    weights: dict[str, int] = {}
    for entry in entries:
        weights[entry.dtype] = weights.get(entry.dtype, 0) + entry.size_bytes
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    config["dtype"] = config["torch_dtype"] = names[max(weights, key=lambda kind: weights[kind])]
    pieces: OrderedDict[str, list[np.ndarray]] = OrderedDict()

    def data(source: str) -> np.ndarray:
        m, index = owner[source]
        if m.name not in pieces:
            pieces[m.name] = m.restore(_values(file, m))
            if len(pieces) > (KEPT if len(m.sources) > 1 else 1):
                pieces.popitem(last=False)
        pieces.move_to_end(m.name)
        return pieces[m.name][index]

    try:
        write_folder(folder, entries, data)
        write_config(folder, config)
        write_tokenizer(file, folder)
        _write_generation_config(file, folder)
        write_card(file, folder)
    except OSError as error:
        raise StepFailed(
            f"{folder}: cannot hold the checkpoint of {file.path} ({error.strerror}); set TMPDIR to a "
            "larger disk"
        ) from None


def plan_back(file: GgufFile, config: dict[str, Any]) -> list[Mapped]:
    """The family's own plan of the checkpoint that ``file`` was made from, its tensors matched with those of
    the file.

    Errors: Unsupported for tensors of the file that the plan does not have; BadInput where shapes contradict
    the config.
    """
    architecture = config["architectures"][0]
    headers: dict[str, TensorInfo] = {}
    checkpoint = Checkpoint(file.path.parent, str(file.path), None, config, headers)
    family: Family = import_module(f"quantize.gguf.families.{KNOWN[architecture]}").family(checkpoint)
    h = Hyperparameters(config, family.defaults, str(file.path))
    tied = family.head == "required" and config["tie_word_embeddings"]
    for rule, layer in _rules(family, h.layers):
        for suffix in (*rule.suffixes, *rule.optional):
            name = target_name(rule, suffix, layer)
            if name in file.tensors and not (tied and name == "output.weight"):
                sources = source_names(rule, suffix, layer, h)
                operation = rule.op(h) if rule.op else COPY
                try:
                    shapes = operation.source_shapes(_shape(file, name), len(sources))
                except BadInput as error:
                    raise BadInput(f"{file.path}: tensor {name}: {error}") from None
                for source, shape in zip(sources, shapes, strict=True):
                    headers[source] = TensorInfo(source, shape, "F32", file.path, 0, 4 * int(np.prod(shape)))
    planned = [mapped for mapped in make_plan(family, checkpoint).tensors if mapped.name in file.tensors]
    left = sorted(set(file.tensors) - {mapped.name for mapped in planned} - {"rope_freqs.weight"})
    if left:
        raise Unsupported(
            f"{file.path}: tensor {printable(left[0], 100)} has no place in a {architecture}; this GGUF "
            "cannot be read back"
        )
    return [mapped for mapped in planned if mapped.sources]


def _rules(family: Family, layers: int) -> list[tuple[Rule, int]]:
    def first(entry: Rule | OneOf) -> tuple[Rule, ...]:
        return (entry,) if isinstance(entry, Rule) else entry.options[0]

    ends = [(rule, 0) for entry in family.ends for rule in first(entry)]
    return ends + [
        (rule, layer) for layer in range(layers) for entry in family.layer for rule in first(entry)
    ]


def _shape(file: GgufFile, name: str) -> tuple[int, ...]:
    shape = file.tensors[name].shape
    # The gate of a shared expert is a single row, which GGUF may hold without the axis of one.
    return (1, *shape) if name.endswith("ffn_gate_inp_shexp.weight") and len(shape) == 1 else shape


def _source_shapes(mapped: Mapped) -> list[tuple[str, tuple[int, ...]]]:
    stacked = len(mapped.sources) > 1
    return [(source, mapped.shape[1:] if stacked else mapped.shape) for source in mapped.sources]


def _dtype(file: GgufFile, mapped: Mapped) -> str:
    return STORED.get(file.tensors[mapped.name].kind, "F32") if mapped.pure else "F32"


def _values(file: GgufFile, mapped: Mapped) -> np.ndarray:
    kind = file.tensors[mapped.name].kind
    if mapped.pure and kind in STORED:
        return np.ascontiguousarray(file.raw(mapped.name)).view(NUMPY[kind]).reshape(mapped.shape)
    return file.dequantize(mapped.name).reshape(mapped.shape)


def _write_generation_config(file: GgufFile, folder: Path) -> None:
    ends = end_tokens(file.kvs)
    config: dict[str, Any] = {"_from_model_config": True}
    if (bos := token_of(file.kvs, "bos")) is not None:
        config["bos_token_id"] = bos
    if ends:
        config["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    if (pad := token_of(file.kvs, "pad")) is not None:
        config["pad_token_id"] = pad
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
