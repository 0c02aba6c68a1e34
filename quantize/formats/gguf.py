"""GGUF: one file with weights, tokenizer and metadata, read by llama.cpp and everything built on it."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.artifact.artifact import Check, Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.entries import Entries
from quantize.checkpoint.templates import folder_templates
from quantize.errors import BadInput
from quantize.formats.base import Format
from quantize.gguf.container.reader import GgufFile, GgufTensor, read_gguf
from quantize.gguf.container.writer import Planned, header, padded, part_kvs, split
from quantize.gguf.families.base import Mapped
from quantize.gguf.families.plan import by_entry, dequantize
from quantize.gguf.tokenizer.chat_templates import templates_of
from quantize.gguf.tokenizer.special import gguf_name
from quantize.gguf.tokenizer.verify import verify_tokenizer
from quantize.kernels.block_types import ACTIVATIONS, UNQUANTIZED, Type


@dataclass(frozen=True)
class GgufFormat(Format):
    """``type``: of the file, in llama-quantize's spelling; ``tensors``: what its family makes of the
    source's; ``pre_tokenizer``: llama.cpp's name, where somebody gave it."""

    type: str
    tensors: tuple[Mapped, ...]
    pre_tokenizer: str | None = None

    runtime: ClassVar[str] = "llamacpp"
    loads_in: ClassVar[tuple[str, ...]] = ("llama.cpp", "Ollama", "LM Studio", "transformers")
    hf_folder: ClassVar[bool] = False
    reader: ClassVar[str] = "gguf (numpy)"
    gelu_table: ClassVar[bool] = True
    hub_library: ClassVar[str] = "gguf"
    hub_tag: ClassVar[str] = "gguf"
    shared_repository: ClassVar[str] = "GGUF"

    @property
    def kl_tolerance(self) -> float:
        """llama.cpp rounds activations to the weights' own type (F16: 1e-7 seen, BF16: 7e-5), or to 8 bits,
        in blocks of 32 or 256, where they are quantized (1e-4 to 2e-3 seen)."""
        return {"f32": 1e-7, "f16": 1e-5, "bf16": 5e-4}.get(self.type, 2e-2)

    def quantized(self, stage: Path) -> dict[str, str]:
        return {name: kind.name for name, kind in self._kinds(stage) if kind not in UNQUANTIZED}

    def checksums(self, stage: Path) -> dict[str, int]:
        return {name: _crc32(tensor) for name, tensor in open_gguf(stage).tensors.items()}

    def activation_types(self, stage: Path) -> dict[str, str]:
        """As llama.cpp rounds them on a CPU; float32 ones are left out."""
        return {name: ACTIVATIONS[kind] for name, kind in self._kinds(stage) if kind in ACTIVATIONS}

    def _kinds(self, stage: Path) -> Iterator[tuple[str, Type]]:
        """The source tensors of every tensor in the file, and its type."""
        sources = {mapped.name: mapped.sources for mapped in self.tensors}
        for name, tensor in open_gguf(stage).tensors.items():
            for source in sources.get(name, ()):
                yield source, tensor.kind

    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        yield from dequantize(open_gguf(stage), self.tensors, checkpoint.source)

    def by_entry(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray | Entries]]:
        """``dequantize``, experts' matrices one at a time."""
        yield from by_entry(open_gguf(stage), self.tensors, checkpoint.source)

    def tokenizer_checks(
        self,
        stage: Path,
        checkpoint: Checkpoint,
        tokenize: Callable[[str], list[int]],
        allowed: list[Note] | None,
    ) -> list[Check]:
        file = open_gguf(stage)
        report = verify_tokenizer(checkpoint, tokenize, pre=self.pre_tokenizer)
        detail = report.summary()
        if report.fixable:
            first = report.fixable[0]
            detail = (
                f"{first.text[:40]!r} gives {first.llamacpp_ids[:6]}, its source "
                f"{first.source_ids[:6]} ({first.cause}); {detail}"
            )
        passed = not report.fixable or allowed is not None
        if report.fixable and allowed is not None:
            allowed.append(
                Note(tensor="*", what=f"tokenizer: {detail}", why="--allow-tokenizer-mismatch was given")
            )
        wanted = {gguf_name(name): text for name, text in folder_templates(checkpoint.folder).items()}
        same = templates_of(file.kvs) == wanted
        return [
            Check(name="tokenizer", passed=passed, value=float(len(report.mismatches)), detail=detail),
            Check(name="chat template", passed=same, detail="" if same else "not the source's"),
        ]


def file_bytes(kvs: Mapping[str, Any], tensors: Sequence[Planned], split_max_bytes: int | None) -> int:
    """Exact: the very headers that the writer would write, and the padded tensors."""
    parts = split(tensors, split_max_bytes)
    headers = [header(part_kvs(kvs, i, len(parts), len(tensors)), part) for i, part in enumerate(parts)]
    return sum(map(len, headers)) + sum(padded(tensor.size_bytes) for tensor in tensors)


def _crc32(tensor: GgufTensor) -> int:
    """Of its bytes. Read, not mapped: of what is mapped all would stay in memory."""
    found, left = 0, tensor.size_bytes
    with open(tensor.file, "rb") as file:
        file.seek(tensor.offset)
        while left and (block := file.read(min(left, 1 << 20))):
            found, left = zlib.crc32(block, found), left - len(block)
    return found


def open_gguf(stage: Path) -> GgufFile:
    """The file under ``stage``, of several parts all. Errors: BadInput where there is none."""
    files = sorted(stage.glob("*.gguf"))
    if not files:
        raise BadInput(f"{stage}: no .gguf file")
    return read_gguf(files[0])
