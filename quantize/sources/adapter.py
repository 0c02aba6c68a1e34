"""A PEFT LoRA on disk, and which tensor of the base each of its tensors belongs to.

Nothing of the adapter is executed; its weights must be safetensors.
Source: peft's LoraConfig (scaling, patterns).
"""

import hashlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quantize.artifact.artifact import AdapterRecord
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.safetensors_header import StoredTensor, TensorInfo, read_safetensors_header
from quantize.dtypes import FLOATS, NUMPY, to_float32
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.files import inside, typed_path
from quantize.hashes import sha256_file
from quantize.hf.loaded import loaded
from quantize.sources.adapter_config import CONFIG, LoraConfig, read_adapter_config
from quantize.terminal import printable

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.default)?(\.weight)?"
)
#: what peft puts between a module and its parameters: a trained copy, or the layer under the adapter
COPY, UNDER = (
    re.compile(r"\.modules_to_save(\.default)?(?=\.)"),
    re.compile(r"\.(base_layer|original_module)(?=\.)"),
)
#: architectures whose linear layers are transformers' Conv1D, which stores a weight input-first;
#: fan_in_fan_out in the config is that of whichever layer peft came to last
INPUT_FIRST = {"gpt2": ("c_attn", "c_proj", "c_fc", "q_attn"), "openai-gpt": ("c_attn", "c_proj", "c_fc")}
#: names of embeddings and heads: only for these it matters whether they are tied
AT_THE_ENDS = re.compile(
    r"(?:(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|lm_head|embed_out)|^output)\.weight$"
)


@dataclass
class Delta:
    """What the adapter does to one weight of the base. ``a`` (rank, in), ``b`` (out, rank): names in the
    adapter."""

    scaling: float
    a: str = ""
    b: str = ""
    magnitude: str = ""  # DoRA: the length of each row
    embedding: bool = False
    transposed: bool = False  # the base stores the weight input-first


@dataclass(frozen=True)
class Tie:
    """Names in the base's files (of a head that is not there: its name in the model)."""

    embedding: str
    head: str


@dataclass
class Adapter:
    """``deltas``: base tensor -> Delta; ``replaced``: base tensor -> adapter tensor that replaces it.

    ``tie``: embedding and head of the base where they are one tensor and the adapter changes it. ``shared``:
    adapter tensor that replaces both; an entry in ``replaced`` under one of the two names applies only to
    that one.
    """

    folder: Path
    config: LoraConfig
    tensors: dict[str, StoredTensor]
    deltas: dict[str, Delta] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    tie: Tie | None = None
    shared: str = ""

    @property
    def unties(self) -> bool:
        """peft runs embedding and head with different weights."""
        ends = {self.tie.embedding, self.tie.head} if self.tie else set()
        return (
            any(name in self.replaced or name in self.deltas for name in ends)
            and not self.config.ensure_weight_tying
        )

    def under(self, name: str, checkpoint: Checkpoint) -> TensorInfo:
        """What a weight is before its delta is added: a tensor of the adapter or the base."""
        if name in self.replaced:
            return self.tensors[self.replaced[name]]
        if self.tie and name in (self.tie.embedding, self.tie.head):
            return self.tensors[self.shared] if self.shared else checkpoint.tensors[self.tie.embedding]
        return checkpoint.tensors[name]

    def float32(self, name: str) -> np.ndarray:
        """Errors: StepFailed where it holds NaN or Inf."""
        values = _read(self.tensors[name])
        if not np.isfinite(values).all():
            raise StepFailed(
                f"{self.folder}: adapter tensor {name} holds NaN or Inf; train or fetch the adapter again"
            )
        return values


def adapter_record(folder: str | Path) -> AdapterRecord:
    """What the manifest records about the adapter in ``folder``."""
    path = typed_path(folder).resolve()
    whole = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        whole.update(f"{name} {sha256_file(inside(path, name))}\n".encode())
    return AdapterRecord(name=path.name, sha256=whole.hexdigest())


def open_adapter(folder: Path, checkpoint: Checkpoint) -> Adapter:
    """Read config and headers, and match every tensor with one of the base. Errors: BadInput, Unsupported, as
    above."""
    config = read_adapter_config(folder)
    weights = inside(folder, WEIGHTS)
    if not weights.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = (
            "it holds a pickle, which can run code when opened: save it as safetensors"
            if pickled
            else "fetch the whole adapter"
        )
        raise BadInput(f"{folder}: no {WEIGHTS}; {hint}")
    adapter = Adapter(folder, config, read_safetensors_header(weights))
    if any(AT_THE_ENDS.search(f"{_module(name)[0]}.weight") for name in adapter.tensors):
        adapter.tie = _tie(checkpoint)
    for name in adapter.tensors:
        _place(adapter, name, checkpoint)
    if not adapter.deltas and not adapter.replaced and not adapter.shared:
        raise BadInput(f"{weights}: holds no LoRA tensors")
    if config.ensure_weight_tying and adapter.tie:  # what peft saves of the head is the embedding's once more
        if adapter.tie.embedding not in adapter.replaced and adapter.tie.embedding not in adapter.deltas:
            raise Unsupported(
                f"{folder}: ensure_weight_tying is set, and only "
                "the head was trained; merge it with peft first"
            )
        adapter.replaced.pop(adapter.tie.head, None)
        adapter.deltas.pop(adapter.tie.head, None)
    for target, delta in adapter.deltas.items():
        _check_shapes(adapter, target, delta, checkpoint)
    _check_rows(adapter, checkpoint)
    return adapter


def _module(name: str) -> tuple[str, str, str]:
    """An adapter's tensor -> (module, its part of a LoRA or "", parameter's name)."""
    inner = name.removeprefix(PREFIX)
    match = PARTS.fullmatch(inner)
    if match:
        return match["module"], match["part"], "weight"
    module, _, parameter = UNDER.sub("", COPY.sub("", inner)).rpartition(".")
    return module, "", parameter


def _tie(checkpoint: Checkpoint) -> Tie | None:
    """As transformers ties them: where the config says so, unless two are stored that differ."""
    layers = loaded(checkpoint).layers
    if not layers.tied or layers.head is None:
        return None
    head = f"{layers.head}.weight"
    stored = layers.source.get(head)
    embedding = next(
        (name for name in checkpoint.tensors if name != stored and AT_THE_ENDS.search(name)), stored
    )
    if embedding is None:
        return None
    apart = stored is not None and stored != embedding
    if apart and not np.array_equal(checkpoint.read(stored or ""), checkpoint.read(embedding)):
        return None
    return Tie(embedding, stored if apart and stored else head)


def _place(adapter: Adapter, name: str, checkpoint: Checkpoint) -> None:
    module, part, parameter = _module(name)
    target = _base_name(f"{module}.{parameter}", adapter, checkpoint)
    if target is None:
        raise BadInput(_another_base(adapter, name, checkpoint))
    if part:
        delta = adapter.deltas.setdefault(target, Delta(adapter.config.scaling(module)))
        delta.transposed = _input_first(adapter, module, checkpoint)
        delta.embedding |= "embedding" in part
        if part == "lora_magnitude_vector":
            delta.magnitude = name
        elif part.endswith("_A"):
            delta.a = name
        else:
            delta.b = name
        return
    info, base = adapter.tensors[name], checkpoint.tensors.get(target)
    resized = base is not None and base.shape[1:] == info.shape[1:] and len(base.shape) == 2
    if base is not None and base.shape != info.shape and not resized:
        raise BadInput(_another_shape(adapter, name, info.shape, target, base.shape))
    tied = adapter.tie is not None and target in (adapter.tie.embedding, adapter.tie.head)
    alone = COPY.search(name) or (adapter.config.trains_whole(module) and not UNDER.search(name))
    if alone:
        adapter.replaced[target] = name
    elif tied:
        adapter.shared = name
    else:  # the layer under a trained copy does not count beside it
        adapter.replaced.setdefault(target, name)


def _base_name(name: str, adapter: Adapter, checkpoint: Checkpoint) -> str | None:
    """The base's tensor for a module's: unchanged, with or without the wrapper's prefix (``model.``,
    ``transformer.``), or as transformers renames it."""
    candidates = [name, name.partition(".")[2], f"model.{name}", f"transformer.{name}"]
    found = next((candidate for candidate in candidates if candidate in checkpoint.tensors), None)
    if found is None and adapter.tie and adapter.tie.head in candidates:
        return adapter.tie.head
    return found or _before_loading(name, adapter, checkpoint)


def _before_loading(name: str, adapter: Adapter, checkpoint: Checkpoint) -> str | None:
    """The base's tensor that transformers calls ``name`` once it is loaded. Errors: Unsupported where it
    makes that of several, or of a part of one."""
    try:
        part = loaded(checkpoint).parts.get(name)
    except Unsupported:  # transformers lacks the architecture
        return None
    if part is not None and part.make is not None:
        raise Unsupported(
            f"{adapter.folder}: trains {printable(name, 200)}, which transformers makes of "
            f"{part.sources[0]}{' and others' if len(part.sources) > 1 else ''} when it loads "
            f"{checkpoint.source}; merge it with peft first (merge_and_unload)"
        )
    return part.sources[0] if part is not None else None


def _input_first(adapter: Adapter, module: str, checkpoint: Checkpoint) -> bool:
    if checkpoint.model_type in INPUT_FIRST:
        return module.rpartition(".")[2] in INPUT_FIRST[checkpoint.model_type]
    # of linear layers peft takes it back
    return bool(adapter.config.fan_in_fan_out) and checkpoint.trust_remote_code


def _another_base(adapter: Adapter, name: str, checkpoint: Checkpoint) -> str:
    what = f"tensor {printable(name, 200)} has no counterpart in {checkpoint.source}"
    return f"{adapter.folder}: {what}: a LoRA for another base model model{adapter.config.made_for}"


def _another_shape(
    adapter: Adapter, name: str, found: tuple[int, ...], target: str, base: tuple[int, ...]
) -> str:
    fit = f"tensor {printable(name, 200)} of shape {list(found)} does not fit {target} {list(base)}"
    return f"{adapter.folder}: {fit}: a LoRA for another base model model{adapter.config.made_for}"


def _check_shapes(adapter: Adapter, target: str, delta: Delta, checkpoint: Checkpoint) -> None:
    base = adapter.under(target, checkpoint)
    if not delta.a or not delta.b:
        raise BadInput(
            f"{adapter.folder}: {target} has only one of lora_A and lora_B; fetch the adapter again"
        )
    a, b = adapter.tensors[delta.a].shape, adapter.tensors[delta.b].shape
    if base.dtype not in FLOATS or len(base.shape) != 2 or len(a) != 2 or len(b) != 2:
        raise Unsupported(
            f"{adapter.folder}: {target} of shape {list(base.shape)}: only LoRA on matrices can be merged"
        )
    outer = base.shape[::-1] if delta.transposed or delta.embedding else base.shape
    if a[0] != b[1] or a[1] != outer[1] or b[0] != outer[0]:
        worse = (delta.a, a) if a[1] != outer[1] else (delta.b, b)
        raise BadInput(_another_shape(adapter, *worse, target, base.shape))
    if delta.magnitude and math.prod(adapter.tensors[delta.magnitude].shape) != outer[0]:
        raise BadInput(
            _another_shape(
                adapter, delta.magnitude, adapter.tensors[delta.magnitude].shape, target, base.shape
            )
        )
    if delta.magnitude and delta.embedding:
        raise Unsupported(
            f"{adapter.folder}: DoRA on an embedding; merge it with peft first (merge_and_unload)"
        )


def _check_rows(adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Of a vocabulary that was resized the adapter must hold embedding and head."""
    ends = [name for name in (*checkpoint.tensors, *adapter.replaced) if AT_THE_ENDS.search(name)]
    rows = {name: adapter.under(name, checkpoint).shape[0] for name in ends}
    if adapter.tie and adapter.unties:
        rows |= {
            name: adapter.under(name, checkpoint).shape[0]
            for name in (adapter.tie.embedding, adapter.tie.head)
        }
    touched = any(name in adapter.replaced for name in ends) or bool(adapter.shared)
    if touched and len(set(rows.values())) > 1:
        found = ", ".join(f"{name} {count:,}" for name, count in sorted(rows.items()))
        raise Unsupported(
            f"{adapter.folder}: was made on a base with another vocabulary and does not "
            f"hold all of it (rows: {found}); merge it with peft, into that base, first"
        )


def _read(info: StoredTensor) -> np.ndarray:
    if info.dtype not in FLOATS:
        raise BadInput(
            f"{info.file}: tensor {info.name} is stored as {info.dtype}; expected F32, F16 or BF16"
        )
    raw = np.fromfile(info.file, NUMPY[info.dtype], info.parameters, offset=info.offset)
    return to_float32(raw.reshape(info.shape), info.dtype)
