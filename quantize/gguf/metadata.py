"""``general.*`` metadata and the file's name, from the checkpoint's model card, config and name.

The heuristics are gguf-py's own (``gguf.Metadata``), which llama.cpp's converter uses too.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.config import read_generation_config
from quantize.checkpoint.model_card import read_model_card
from quantize.files import typed_path
from quantize.kernels.block_types import FileType

Kvs = dict[str, tuple[Any, GGUFValueType]]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
MAX_STEM_CHARACTERS = 160


def load_metadata(checkpoint: Checkpoint, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> gguf.Metadata:
    """``shapes``: (GGUF name, shape) of every tensor, for the size label.

    Errors: BadInput where generation_config.json is malformed.
    """
    writer = gguf.GGUFWriter(None, "")
    for name, shape in shapes:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), 0)
    total, shared, expert, experts = writer.get_total_parameter_count()
    card = read_model_card(checkpoint.folder).front
    origin = checkpoint.config.get("_name_or_path")
    config = {"_name_or_path": origin} if isinstance(origin, str) else {}
    # Only the last part of the name: the path of a folder on this machine is private. A GGUF file's own name
    # ends in a type, which the heuristic takes for a finetune; the file's own statements are in the card.
    path = Path(checkpoint.name)
    from_gguf = path.suffix.lower() == ".gguf" or typed_path(checkpoint.source).is_file()
    heuristic = gguf.Metadata.apply_metadata_heuristic
    metadata = heuristic(gguf.Metadata(), card, config, None if from_gguf else path, total)
    settings = read_generation_config(checkpoint.folder)
    for field, key in (("temp", "temperature"), ("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p")):
        value = settings.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**31:
            setattr(metadata, f"sampling_{field}", int(value) if field == "top_k" else float(value))
    if metadata.name is None:
        metadata.name = path.stem if from_gguf else checkpoint.name
    if metadata.size_label is None and total > 0:
        metadata.size_label = gguf.size_label(total, shared, expert, experts)
    hub_id = HUB_ID.match(checkpoint.source) if checkpoint.revision else None  # an adapter's name may follow
    if hub_id and not metadata.base_models:
        organization, _, name = hub_id[0].partition("/")
        url = f"https://huggingface.co/{organization}/{name}"
        metadata.base_models = [{"name": _title(name), "organization": _title(organization), "repo_url": url}]
    return metadata


def _title(identifier: str) -> str:
    return str(gguf.Metadata.id_to_title(identifier))


def general_kvs(metadata: gguf.Metadata, architecture: str, *, quantized_by: str | None) -> Kvs:
    """``general.*`` in the order in which llama.cpp's converter writes them; the file type comes later."""
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    metadata.quantized_by = quantized_by or metadata.quantized_by
    metadata.set_gguf_meta_model(writer)
    return {key: (value.value, value.type) for key, value in writer.kv_data[0].items()}


def file_type_kvs(file_type: FileType) -> Kvs:
    return {
        "general.quantization_version": (gguf.GGML_QUANT_VERSION, GGUFValueType.UINT32),
        "general.file_type": (int(file_type.value), GGUFValueType.UINT32),
    }


def file_name(metadata: gguf.Metadata, file_type: FileType) -> str:
    """By the GGUF naming convention: ``<BaseName>-<SizeLabel>-<FineTune>-<Version>-<Encoding>.gguf``."""
    stem = gguf.naming_convention(
        metadata.name,
        metadata.basename,
        metadata.finetune,
        metadata.version,
        metadata.size_label,
        file_type.name,
    )
    stem = re.sub(r"[^\w.+-]", "-", stem).lstrip(".-")
    # The encoding at its end tells files apart; letters beyond ASCII take up to four bytes of the 255 that a
    # name may have.
    if len(stem.encode()) > MAX_STEM_CHARACTERS:
        stem = f"{stem.encode()[:MAX_STEM_CHARACTERS].decode(errors='ignore')}-{file_type.name.upper()}"
    return f"{stem or 'model'}.gguf"
