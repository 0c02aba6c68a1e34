"""The small files of the Hugging Face checkpoint that a GGUF file represents: config, tokenizer, chat
templates, model card. Libraries need them in a folder; the weights are read from the GGUF."""

import json
from pathlib import Path
from typing import Any

from quantize.checkpoint.tensors import write_config
from quantize.dtypes import TORCH
from quantize.errors import StepFailed
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.to_checkpoint.card import write_card
from quantize.gguf.to_checkpoint.tensors import GgufTensors
from quantize.gguf.to_checkpoint.tokenizer import write_tokenizer
from quantize.gguf.tokenizer.chat_templates import end_tokens, token_of


def write_small_files(file: GgufFile, config: dict[str, Any], tensors: GgufTensors, folder: Path) -> None:
    """Errors: Unsupported for a tokenizer with no way back; BadInput where metadata contradict each other;
    StepFailed where the disk is full."""
    weights: dict[str, int] = {}
    for info in tensors.tensors.values():
        weights[info.dtype] = weights.get(info.dtype, 0) + info.size_bytes
    dtype = TORCH[max(weights, key=lambda kind: weights[kind])]
    try:
        write_config(folder, {**config, "dtype": dtype, "torch_dtype": dtype})
        write_tokenizer(file, folder)
        _write_generation_config(file, folder)
        write_card(file, folder)
    except OSError as error:
        raise StepFailed(
            f"{folder}: cannot hold the config and tokenizer of {file.path} ({error.strerror}); set "
            "TMPDIR to a larger disk"
        ) from None


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
