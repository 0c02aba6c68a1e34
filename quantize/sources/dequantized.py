"""A checkpoint that its publisher quantized, in a way that is undone exactly as its tensors are read."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.config import read_config
from quantize.checkpoint.reader import Weights
from quantize.checkpoint.safetensors_header import StoredTensor
from quantize.checkpoint.tensors import write_config
from quantize.checkpoint.weight_files import read_weights
from quantize.errors import StepFailed
from quantize.files import TEMPLATES, check_links, inside
from quantize.staging import held_until_exit

WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf")
FOLDERS = (TEMPLATES, "1_Pooling")


#: (stored tensors, config.json, what the person typed) -> a reader of the tensors that they mean,
#: with ``tensors`` and ``quantized`` as of a ``Weights``
Make = Callable[[Mapping[str, StoredTensor], dict[str, Any], str], Any]


def quant_method(folder: Path) -> str | None:
    """What config.json says that the weights are quantized by. Errors: BadInput where it cannot be read."""
    if not inside(folder, "config.json").is_file():
        return None
    found = quantization_of(read_config(folder))
    return None if found is None else str(found.get("quant_method"))


def quantization_of(config: dict[str, Any]) -> dict[str, Any] | None:
    for part in (config, config.get("text_config") or {}):
        found = part.get("quantization_config")
        if isinstance(found, dict):
            return found
    return None


def open_dequantized(
    folder: Path,
    make: Make,
    *,
    source: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: bool = True,
    scratch: Path | None = None,
) -> Checkpoint:
    """As ``Checkpoint.open``. Config and tokenizer lie in a folder under ``scratch``, removed when the
    program ends.

    Errors: as of ``Checkpoint.open`` and ``make``; StepFailed where the disk is full.
    """
    check_links(folder)
    config = read_config(folder)
    stored, files = read_weights(folder, config.pop("transformers_weights", None))
    reader = make(stored, config, source)
    small = held_until_exit("dequantized", scratch)
    try:
        for path in folder.iterdir():
            if path.is_file() and not path.name.endswith(WEIGHTS):
                shutil.copyfile(path, small / path.name)
            elif path.name in FOLDERS:
                shutil.copytree(path, small / path.name)
        write_config(small, _without(config))
    except OSError as error:
        raise StepFailed(
            f"{small}: cannot hold the config and tokenizer of {source} ({error.strerror}); "
            "set TMPDIR to a larger disk"
        ) from None
    return Checkpoint.open(
        small,
        source=source,
        revision=revision,
        trust_remote_code=trust_remote_code,
        tokenizer=tokenizer,
        weights=Weights(reader.tensors, reader, files.left_alone, files.usual, reader.quantized),
    )


def _without(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` as of the checkpoint before it was quantized."""
    kept = {key: value for key, value in config.items() if key != "quantization_config"}
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = _without(kept["text_config"])
    return kept
