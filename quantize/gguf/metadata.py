"""``general.*`` metadata and the file's name, from the checkpoint's model card, config and name.

The heuristics are gguf-py's own (``gguf.Metadata``), which llama.cpp's converter uses too.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import yaml
from gguf import GGUFValueType

from quantize.checkpoint import Checkpoint
from quantize.errors import BadInput
from quantize.gguf.types import FileType

Kvs = dict[str, tuple[Any, GGUFValueType]]


def load_metadata(checkpoint: Checkpoint, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> gguf.Metadata:
    """``shapes``: (GGUF name, shape) of every tensor, for the size label. Errors: BadInput where the model card is malformed."""
    writer = gguf.GGUFWriter(None, "")
    for name, shape in shapes:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), 0)
    total, shared, expert, experts = writer.get_total_parameter_count()
    try:
        card = gguf.Metadata.load_model_card(checkpoint.folder)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{checkpoint.folder / 'README.md'}: its front matter is not YAML ({_line(error)}); mend or remove it"
        ) from None
    # Only the last part of the name: where a folder lies on this machine is nobody's business. A GGUF file's own name ends in a
    # type, which the heuristic takes for a finetune; what the file says of itself is in the card.
    path = Path(checkpoint.name)
    heuristic = gguf.Metadata.apply_metadata_heuristic
    metadata = heuristic(gguf.Metadata(), card, checkpoint.config, None if path.suffix == ".gguf" else path, total)
    generation = gguf.Metadata.load_generation_config(checkpoint.folder)
    for field, key in (("temp", "temperature"), ("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p")):
        value = generation.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(metadata, f"sampling_{field}", int(value) if field == "top_k" else float(value))
    if metadata.name is None:
        metadata.name = path.stem if path.suffix == ".gguf" else checkpoint.name
    if metadata.size_label is None and total > 0:
        metadata.size_label = gguf.size_label(total, shared, expert, experts)
    if checkpoint.revision and not metadata.base_models:
        organization, _, name = checkpoint.source.split("@")[0].partition("/")
        url = f"https://huggingface.co/{organization}/{name}"
        metadata.base_models = [{"name": _title(name), "organization": _title(organization), "repo_url": url}]
    return metadata


def _title(identifier: str) -> str:
    return str(gguf.Metadata.id_to_title(identifier))


def _line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:120]


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
        metadata.name, metadata.basename, metadata.finetune, metadata.version, metadata.size_label, file_type.name
    )
    return re.sub(r"[^\w.+-]", "-", stem).lstrip(".-") + ".gguf"
