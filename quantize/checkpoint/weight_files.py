"""Which files of a folder hold the model's weights: those that transformers loads, and no others beside them.

Examples of others in real folders: an EMA copy of accelerate's save_state (model_1.safetensors), the shards
of an older save, Mistral's consolidated.safetensors, an adapter, an optimizer's state.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantize.checkpoint.safetensors_header import StoredTensor, read_safetensors_header
from quantize.errors import BadInput
from quantize.files import inside, plain_name, read_json
from quantize.terminal import printable

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
#: beginnings of names of what is never a model's weights in transformers' names
OTHERS = ("consolidated", "adapter", "optimizer", "scheduler", "training", "random_states", "rng_state")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """``files`` in the order in which transformers reads them: of two with the same tensor, the later counts.

    ``left_alone``: names of other .safetensors in the folder. ``index``: tensor -> shard as an index has it,
    else empty. ``usual``: in a form that transformers itself opens.
    """

    files: tuple[Path, ...]
    left_alone: tuple[str, ...] = ()
    index: dict[str, str] = field(default_factory=dict)
    usual: bool = True


def weight_files(folder: Path, named: str | None = None) -> WeightFiles:
    """model.safetensors, else the shards of its index; where there is neither, a complete set of shards or
    the only file.

    ``named``: what config.json's ``transformers_weights`` says, a file or an index; it goes before all
    others.

    Errors: BadInput where there is none, a shard is missing, or it is unclear which files are meant.
    """
    if named is not None:
        return _usual(folder, plain_name(named, f"{folder / 'config.json'}: transformers_weights"))
    for name in (SINGLE, INDEX):
        if (folder / name).is_file():
            return _usual(folder, name)
    return _guessed(folder)


def is_adapter_beside(folder: Path) -> bool:
    """Whether a model's folder also holds a PEFT adapter, which is used where it is named (``--adapter``) and
    nowhere else."""
    return (folder / ADAPTER).is_file() and (folder / "config.json").is_file()


def read_weights(folder: Path, named: str | None = None) -> tuple[dict[str, StoredTensor], WeightFiles]:
    """Headers of ``weight_files``. Errors: BadInput, as it and ``read_safetensors_header``."""
    found = weight_files(folder, named)
    tensors: dict[str, StoredTensor] = {}
    for path in found.files:
        tensors.update(read_safetensors_header(path))
    missing = next((name for name in found.index if name not in tensors), None)
    if missing is not None:
        raise BadInput(
            f"{folder}: {INDEX} names tensor {printable(missing, 200)}, "
            "which no shard holds; fetch the shards again"
        )
    return tensors, found


def index_shards(path: Path) -> dict[str, str]:
    """Tensor -> shard of an index file. Errors: BadInput where it is not an index, or names files outside its
    folder."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{path}: not a safetensors index (no weight_map); fetch the file again")
    checked: set[Any] = set()
    for shard in weight_map.values():
        if not isinstance(shard, str) or shard not in checked:
            checked.add(plain_name(shard, str(path)))
    return weight_map


def _usual(folder: Path, name: str) -> WeightFiles:
    index: dict[str, str] = {}
    if name.endswith(".safetensors.index.json"):
        index = index_shards(inside(folder, name))
        names = sorted(set(index.values()))
    elif name.endswith(".safetensors"):
        names = [name]
    else:
        raise BadInput(
            f"{folder}: config.json says that the weights are in "
            f"{name}; expected a .safetensors file or its index"
        )
    for shard in names:
        if not (folder / shard).is_file():
            raise BadInput(f"{folder}: {name} names {shard}, which is missing; fetch that shard")
    paths = tuple(inside(folder, shard) for shard in names)
    others = tuple(path.name for path in _present(folder) if path not in paths)
    return WeightFiles(paths, others, index)


def _guessed(folder: Path) -> WeightFiles:
    present = _present(folder)
    candidates = [path for path in present if not path.name.startswith(OTHERS)]
    others = tuple(path.name for path in present if path not in candidates)
    if not candidates:
        if any(any(folder.glob(pattern)) for pattern in ("*.bin", "*.pt", "*.pth")):
            raise BadInput(
                f"{folder}: holds pickle weights only (.bin), which can run code when opened; "
                "convert them to safetensors first (the Hub's convert space, or save_pretrained in a sandbox)"
            )
        found = f"; {others[0]} is not in transformers' form" if others else ""
        raise BadInput(
            f"{folder}: no .safetensors weights (expected {SINGLE} "
            f"or {INDEX}){found}; fetch the whole checkpoint"
        )
    parts = [_SHARD.fullmatch(path.name) for path in candidates]
    if len({part and (part[1], part[3]) for part in parts}) == 1 and parts[0]:
        stem, count = parts[0][1], int(parts[0][3])
        have = {int(part[2]) for part in parts if part}
        lacking = next((number for number in range(1, count + 1) if number not in have), None)
        if lacking is not None:
            missing = f"{stem}-{lacking:05d}-of-{count:05d}.safetensors"
            raise BadInput(f"{folder}: {missing} is missing, and there is no {INDEX}; fetch that shard")
    elif len(candidates) > 1:
        names = ", ".join(printable(path.name, 100) for path in candidates[:4]) + (
            ", ..." if len(candidates) > 4 else ""
        )
        raise BadInput(
            f"{folder}: which of {names} is the model? Expected {SINGLE}, or {INDEX} with its shards; "
            f"rename the one that is meant to {SINGLE}"
        )
    return WeightFiles(tuple(inside(folder, path.name) for path in candidates), others, usual=False)


def _present(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())
