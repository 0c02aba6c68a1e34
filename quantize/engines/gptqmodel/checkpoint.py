"""What GPTQ and AWQ artifacts hold: GPTQModel's packed tensors beside the source's own, under the source's
config."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.checkpoint.checkpoint import Checkpoint, read_weights
from quantize.dtypes import FLOATS, TORCH
from quantize.engines.gptqmodel.engine import EngineRun
from quantize.engines.gptqmodel.installed import GPTQMODEL
from quantize.errors import StepFailed

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 4 << 30
PACKED_SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def write_checkpoint(
    checkpoint: Checkpoint,
    run: EngineRun,
    stage: Path,
    quantization: dict[str, Any],
    repack: Callable[[str, "dict[str, torch.Tensor]"], "dict[str, torch.Tensor]"] | None = None,
) -> int:
    """Write config.json, quantize_config.json and model*.safetensors into ``stage``; return the bytes of
    tensor data.

    Packed tensors come from the engine (through ``repack``, a linear at a time), all others are stored in the
    source's dtype.

    Errors: StepFailed where a weight of the source is missing from what the engine saved.
    """
    import torch
    from safetensors import safe_open

    infos, _ = read_weights(run.folder)
    packed = {name.removesuffix(".qweight") for name in infos if name.endswith(".qweight")}
    names = [
        name for name in sorted(infos) if name in checkpoint.tensors or name.rpartition(".")[0] in packed
    ]
    missing = sorted(set(checkpoint.tensors) - set(names) - {f"{base}.weight" for base in packed})
    if missing:
        raise StepFailed(f"{checkpoint.source}: {GPTQMODEL.label} did not save {missing[0]} in any form")
    handles = {path: safe_open(path, "pt") for path in {info.file for info in infos.values()}}

    def tensor(name: str) -> torch.Tensor:
        value: torch.Tensor = handles[infos[name].file].get_tensor(name)
        if name not in checkpoint.tensors:
            return value
        stored = checkpoint.tensors[name].dtype
        return value.to(getattr(torch, TORCH[stored])) if stored in FLOATS else value

    config = {**checkpoint.config, "quantization_config": quantization}
    for file, content in (("config.json", config), ("quantize_config.json", quantization)):
        (stage / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    writer = _ShardWriter(stage)
    for base in sorted(packed):
        group = {
            f"{base}.{suffix}": tensor(f"{base}.{suffix}")
            for suffix in PACKED_SUFFIXES
            if f"{base}.{suffix}" in infos
        }
        writer.add(repack(base, group) if repack else group)
    for name in names:
        if not (name.endswith(PACKED_SUFFIXES) and name.rpartition(".")[0] in packed):
            writer.add({name: tensor(name)})
    return writer.close()


class _ShardWriter:
    """Collects tensors into safetensors files of at most ``SHARD_BYTES``, named and indexed as transformers
    does."""

    def __init__(self, stage: Path):
        self.stage = stage
        self.shards: list[list[str]] = []
        self.pending: dict[str, torch.Tensor] = {}
        self.bytes = self.total = 0

    def add(self, tensors: "dict[str, torch.Tensor]") -> None:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self.pending and self.bytes + size > SHARD_BYTES:
            self._flush()
        self.pending |= {name: t.contiguous() for name, t in tensors.items()}
        self.bytes += size

    def _flush(self) -> None:
        from safetensors.torch import save_file

        save_file(self.pending, self.stage / f"shard-{len(self.shards)}", metadata={"format": "pt"})
        self.shards.append(sorted(self.pending))
        self.total += self.bytes
        self.pending, self.bytes = {}, 0

    def close(self) -> int:
        self._flush()
        count = len(self.shards)
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self.shards):
            file = "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
            os.rename(self.stage / f"shard-{index}", self.stage / file)
            # safetensors makes files only their owner can read
            shutil.copymode(self.stage / "config.json", self.stage / file)
            weight_map |= dict.fromkeys(names, file)
        if count > 1:
            content = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.stage / "model.safetensors.index.json").write_text(
                json.dumps(content, indent=2) + "\n", encoding="utf-8"
            )
        return self.total
