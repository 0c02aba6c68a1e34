"""A PEFT LoRA merged into its base on the way: a checkpoint like any other comes out, for every method.

W + s B A is computed in float32 and stored in the base's own dtype, one tensor in memory at a time; the model is never built.
Nothing of the adapter is executed; its weights must be safetensors.
Source: peft's LoraConfig (scaling, patterns), ``tuners/lora/layer.py`` (get_delta_weight) and ``tuners/lora/dora.py``.
"""

import atexit
import hashlib
import math
import re
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantize.artifact import AdapterRecord
from quantize.checkpoint import (
    FLOAT_DTYPES,
    TOKENIZER_FILES,
    Checkpoint,
    TensorInfo,
    bfloat16_to_float32,
    read_safetensors_header,
    sha256_file,
)
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.files import check_links, inside, read_json
from quantize.model_card import CARD, license_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.default)?(\.weight)?"
)
WRAPPERS = re.compile(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)")
# Settings of LoraConfig that change what the weights mean, and are not merged here.
REFUSED = {
    "target_parameters": "LoRA on bare parameters (fused experts)", "lora_bias": "LoRA with a bias of its own",
    "use_qalora": "QALoRA", "alora_invocation_tokens": "an activated LoRA, which cannot be merged",
    "megatron_config": "Megatron layers", "trainable_token_indices": "single trained tokens",
    "layer_replication": "replicated layers", "arrow_config": "Arrow routing", "velora_config": "VeLoRA",
    "use_bdlora": "BD-LoRA", "monteclora_config": "MonteCLoRA", "kasa_config": "KaSA",
}  # fmt: skip
# Ways to start that change the base too: without them the base on disk is not the one that was trained on.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass
class Delta:
    """What the adapter does to one weight of the base. ``a`` (rank, in), ``b`` (out, rank): names in the adapter."""

    scaling: float
    a: str = ""
    b: str = ""
    magnitude: str = ""  # DoRA: the length of each row
    embedding: bool = False
    transposed: bool = False  # the base stores the weight input-first


@dataclass
class Adapter:
    """``deltas``: base tensor -> Delta; ``replaced``: base tensor -> adapter tensor that stands in for it."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    deltas: dict[str, Delta] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)

    def float32(self, name: str) -> np.ndarray:
        """Errors: StepFailed where it holds NaN or Inf."""
        values = _read(self.tensors[name])
        if not np.isfinite(values).all():
            raise StepFailed(f"{self.folder}: adapter tensor {name} holds NaN or Inf; train or fetch the adapter again")
        return values


def merge_adapter(checkpoint: Checkpoint, adapter: str | Path) -> Checkpoint:
    """``checkpoint`` with the LoRA in the folder ``adapter`` merged, in a temporary folder removed when the program ends.

    Errors: BadInput where the folder holds no LoRA, is damaged, or was made for another base; Unsupported for kinds of adapter
    that cannot be merged; StepFailed for NaN, Inf or a full disk.
    """
    from quantize.hf.tensors import Entry, write_config, write_folder

    opened = open_adapter(Path(adapter).expanduser(), checkpoint)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    dtypes = {name: info.dtype for name, info in checkpoint.tensors.items()}
    for name, source in opened.replaced.items():
        shapes[name] = opened.tensors[source].shape
        dtypes.setdefault(name, checkpoint.dtype)
    folder = Path(tempfile.mkdtemp(prefix="quantwright-merged-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def data(name: str) -> np.ndarray:
        if name not in opened.replaced and name not in opened.deltas:
            return np.asarray(checkpoint.read(name))
        weight = opened.float32(opened.replaced[name]) if name in opened.replaced else checkpoint.read_float32(name)
        return _store(_merged(weight, opened, opened.deltas[name]) if name in opened.deltas else weight, dtypes[name])

    config = _config(checkpoint, opened, shapes)
    try:
        write_folder(folder, [Entry(name, dtypes[name], shapes[name]) for name in shapes], data)
        write_config(folder, config)
        _copy_small_files(checkpoint, opened, folder, shapes)
    except OSError as error:
        raise StepFailed(f"{folder}: cannot hold the merged checkpoint ({error.strerror}); set TMPDIR to a larger disk") from None
    merged = Checkpoint.open(folder, trust_remote_code=checkpoint.trust_remote_code)
    name = opened.folder.resolve().name
    return replace(merged, source=f"{checkpoint.source}+{name}", revision=checkpoint.revision)


def adapter_record(folder: str | Path) -> AdapterRecord:
    """What the manifest says of the adapter in ``folder``."""
    path = Path(folder).expanduser().resolve()
    whole = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        whole.update(f"{name} {sha256_file(path / name)}\n".encode())
    return AdapterRecord(name=path.name, sha256=whole.hexdigest())


def open_adapter(folder: Path, checkpoint: Checkpoint) -> Adapter:
    """Read config and headers, and match every tensor with one of the base. Errors: BadInput, Unsupported, as above."""
    config = _read_config(folder)
    weights = inside(folder, WEIGHTS)
    if not weights.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = (
            "it holds a pickle, which can run code when opened: save it as safetensors" if pickled else "fetch the whole adapter"
        )
        raise BadInput(f"{folder}: no {WEIGHTS}; {hint}")
    adapter = Adapter(folder, config, read_safetensors_header(weights))
    for name in adapter.tensors:
        _place(adapter, name, checkpoint)
    if not adapter.deltas and not adapter.replaced:
        raise BadInput(f"{weights}: holds no LoRA tensors")
    for target, delta in adapter.deltas.items():
        _check_shapes(adapter, target, delta, checkpoint)
    return adapter


def _read_config(folder: Path) -> dict[str, Any]:
    if folder.is_dir():
        check_links(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise BadInput(f"{folder}: no {CONFIG}, so not a PEFT adapter; give the folder that holds it")
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise Unsupported(f"{folder}: an adapter of type {config.get('peft_type')}; only LORA can be merged")
    for key, what in REFUSED.items():
        if config.get(key):
            raise Unsupported(f"{folder}: {key} is set: {what}; merge it with peft first (merge_and_unload)")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(BASE_CHANGING):
        raise Unsupported(
            f"{folder}: init_lora_weights is {start}, which changed the base in training; "
            "save it as an ordinary LoRA with peft first"
        )
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            raise BadInput(f"{path}: {key} is {value!r}, a positive number was expected")
    return config


def _place(adapter: Adapter, name: str, checkpoint: Checkpoint) -> None:
    inner = name.removeprefix(PREFIX)
    match = PARTS.fullmatch(inner)
    if match is None:
        target = _base_name(WRAPPERS.sub("", inner), adapter, checkpoint)
        if target is None:
            raise BadInput(_another_base(adapter, name, checkpoint))
        info, base = adapter.tensors[name], checkpoint.tensors.get(target)
        resized = base is not None and base.shape[1:] == info.shape[1:] and len(base.shape) == 2
        if base is not None and base.shape != info.shape and not resized:
            raise BadInput(_another_shape(adapter, name, info.shape, target, base.shape))
        adapter.replaced[target] = name
        return
    module, part = match["module"], match["part"]
    target = _base_name(f"{module}.weight", adapter, checkpoint)
    if target is None or target not in checkpoint.tensors:
        raise BadInput(_another_base(adapter, name, checkpoint))
    delta = adapter.deltas.setdefault(target, Delta(_scaling(adapter.config, module)))
    delta.transposed = bool(adapter.config.get("fan_in_fan_out"))
    delta.embedding |= "embedding" in part
    if part == "lora_magnitude_vector":
        delta.magnitude = name
    elif part.endswith("_A"):
        delta.a = name
    else:
        delta.b = name


def _base_name(name: str, adapter: Adapter, checkpoint: Checkpoint) -> str | None:
    """The base's tensor for a module's: as it is, or with or without the wrapper's prefix (``model.``, ``transformer.``)."""
    candidates = [name, name.partition(".")[2], f"model.{name}", f"transformer.{name}"]
    found = next((candidate for candidate in candidates if candidate in checkpoint.tensors), None)
    tied_head = name in ("lm_head.weight", "embed_out.weight") and found is None
    return name if tied_head and not PARTS.search(name) and _saves(adapter.config, name) else found


def _saves(config: dict[str, Any], name: str) -> bool:
    """Whether the head is trained whole, so that it exists apart from the embedding it was tied to."""
    return name.partition(".")[0] in (config.get("modules_to_save") or [])


def _scaling(config: dict[str, Any], module: str) -> float:
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _pattern(patterns: Any, module: str, default: float) -> float:
    for key, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return float(value)
        except (re.error, TypeError, ValueError):
            raise BadInput(f"adapter_config.json: pattern {key!r}: {value!r} cannot be used") from None
    return default


def _another_base(adapter: Adapter, name: str, checkpoint: Checkpoint) -> str:
    made_for = adapter.config.get("base_model_name_or_path")
    hint = f"; it says it was made for {made_for}" if made_for else ""
    return f"{adapter.folder}: tensor {name} has no counterpart in {checkpoint.source}: a LoRA for another base{hint}"


def _another_shape(adapter: Adapter, name: str, found: tuple[int, ...], target: str, base: tuple[int, ...]) -> str:
    made_for = adapter.config.get("base_model_name_or_path")
    hint = f"; it says it was made for {made_for}" if made_for else ""
    fit = f"tensor {name} of shape {list(found)} does not fit {target} {list(base)}"
    return f"{adapter.folder}: {fit}: a LoRA for another base{hint}"


def _check_shapes(adapter: Adapter, target: str, delta: Delta, checkpoint: Checkpoint) -> None:
    base = checkpoint.tensors[target]
    if not delta.a or not delta.b:
        raise BadInput(f"{adapter.folder}: {target} has only one of lora_A and lora_B; fetch the adapter again")
    a, b = adapter.tensors[delta.a].shape, adapter.tensors[delta.b].shape
    if base.dtype not in FLOAT_DTYPES or len(base.shape) != 2 or len(a) != 2 or len(b) != 2:
        raise Unsupported(f"{adapter.folder}: {target} of shape {list(base.shape)}: only LoRA on matrices can be merged")
    shape = adapter.tensors[adapter.replaced[target]].shape if target in adapter.replaced else base.shape
    outer = shape[::-1] if delta.transposed or delta.embedding else shape
    if a[0] != b[1] or a[1] != outer[1] or b[0] != outer[0]:
        worse = (delta.a, a) if a[1] != outer[1] else (delta.b, b)
        raise BadInput(_another_shape(adapter, *worse, target, base.shape))
    if delta.magnitude and math.prod(adapter.tensors[delta.magnitude].shape) != outer[0]:
        raise BadInput(_another_shape(adapter, delta.magnitude, adapter.tensors[delta.magnitude].shape, target, base.shape))
    if delta.magnitude and delta.embedding:
        raise Unsupported(f"{adapter.folder}: DoRA on an embedding; merge it with peft first (merge_and_unload)")


def _merged(weight: np.ndarray, adapter: Adapter, delta: Delta) -> np.ndarray:
    """float32 (out, in), or as the base stores it."""
    change = np.float32(delta.scaling) * (adapter.float32(delta.b) @ adapter.float32(delta.a))
    if delta.embedding or delta.transposed:
        change = change.T
    if not delta.magnitude:
        return np.asarray(weight + change, np.float32)
    axis = 0 if delta.transposed else 1
    whole = weight + change
    length = np.sqrt(np.square(whole).sum(axis=axis, keepdims=True))
    magnitude = adapter.float32(delta.magnitude).reshape(length.shape)
    return np.asarray(whole * (magnitude / length), np.float32)


def _read(info: TensorInfo) -> np.ndarray:
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    if info.dtype not in kinds:
        raise BadInput(f"{info.file}: tensor {info.name} is stored as {info.dtype}; F32, F16 or BF16 was expected")
    raw = np.fromfile(info.file, kinds[info.dtype], info.parameters, offset=info.offset).reshape(info.shape)
    return bfloat16_to_float32(raw) if info.dtype == "BF16" else raw.astype(np.float32)


def _store(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 rounded to nearest even in ``dtype``, BF16 as bit patterns. Errors: StepFailed where float16 overflows."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        out = values.astype({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype])
    if not np.isfinite(out).all():
        raise StepFailed(f"a merged weight is too large for {dtype}, the dtype of the base; convert the base to bfloat16 first")
    return out


def _config(checkpoint: Checkpoint, adapter: Adapter, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    config = dict(checkpoint.config)
    for name in adapter.replaced:
        if name.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight")):
            config["vocab_size"] = shapes[name][0]
        if name in ("lm_head.weight", "embed_out.weight") and name not in checkpoint.tensors:
            config["tie_word_embeddings"] = False
    return config


def _copy_small_files(checkpoint: Checkpoint, adapter: Adapter, folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """The base's tokenizer, or the adapter's where it brings an embedding with other rows (added tokens)."""
    resized = any(n in checkpoint.tensors and checkpoint.tensors[n].shape != shapes[n] for n in adapter.replaced)
    for path in [*checkpoint.companion_files, inside(checkpoint.folder, CARD), *license_files(checkpoint.folder)]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    if resized:
        for name in TOKENIZER_FILES:
            if (adapter.folder / name).is_file():
                shutil.copyfile(adapter.folder / name, folder / name)
