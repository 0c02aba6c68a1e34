"""Which programs open what, and what they would make of it."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from quantize.checkpoint.kv_cache import KvShape, kv_shape
from quantize.formats.gptq_in_vllm import refused_by_vllm
from quantize.methods.registry import METHODS, method

MODEL_TYPE = re.compile(r"[\w.-]+")
#: who else opens what this program does not make
OTHERS = {
    "compressed-tensors": ("transformers", "vllm", "sglang"),
    "fp8": ("transformers", "vllm", "sglang"),
    "fbgemm_fp8": ("transformers", "vllm"),
    "mxfp4": ("transformers", "vllm", "sglang"),
    "modelopt": ("vllm", "sglang"),
    "torchao": ("transformers", "vllm"),
    "hqq": ("transformers",),
    "aqlm": ("transformers", "vllm"),
    "mlx": ("mlx-lm",),
    "exl2": ("exllamav2",),
    "exl3": ("exllamav3",),
}


def file_type(value: Any) -> str:
    try:
        return LlamaFileType(value).name.lower().removeprefix("mostly_").removeprefix("all_")
    except ValueError:
        return ""


def loads_in(storage: str, scheme: Any) -> tuple[str, ...]:
    """``scheme``: what config.json says of the quantization."""
    if storage == "dense":
        return method("dense").format.loads_in
    for name in METHODS:
        form = method(name).format
        if form.storage == storage:
            return tuple(name for name in form.loads_in if name != "vllm" or not refused_by_vllm(scheme))
    return OTHERS.get(storage, ())


def known_here(model_type: str) -> bool:
    """Whether the transformers that is installed has the model type. Its lists are read as text: importing
    them imports torch."""
    found = find_spec("transformers")
    lists = Path(((found and found.submodule_search_locations) or [""])[0]) / "models" / "auto"
    files = [lists / name for name in ("auto_mappings.py", "configuration_auto.py")]
    there = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    quoted = f'"{model_type}"'
    return not there or (MODEL_TYPE.fullmatch(model_type) is not None and any(quoted in t for t in there))


def kv_of(kvs: Mapping[str, Any], architecture: str) -> KvShape | None:
    """Of an architecture with no way back to a config: the keys that all of them have."""

    def largest(key: str) -> int:
        value = kvs.get(f"{architecture}.{key}")
        values = value if isinstance(value, list) else [value]
        return max((v for v in values if type(v) is int and 0 < v < 2**31), default=0)

    heads = largest("attention.head_count")
    config = {
        "num_hidden_layers": largest("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": largest("attention.head_count_kv"),
        "hidden_size": largest("embedding_length"),
        "head_dim": largest("attention.key_length"),
        "max_position_embeddings": largest("context_length"),
    }
    return kv_shape(config)
