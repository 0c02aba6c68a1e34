"""A GGUF file made again from its source: ours by its recipe, anybody's by what the file itself says."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import Manifest
from quantize.attesting.blocks import block_difference, derive, part_names, rows_of
from quantize.attesting.metadata import gguf_metadata
from quantize.attesting.outcome import Outcome
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.model_card import license_files
from quantize.engines.ggml import planned
from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.chunks import Clock, Planned, chunks, make
from quantize.gguf.container.reader import GgufFile, read_gguf
from quantize.gguf.container.writer import Kvs
from quantize.gguf.families.base import Mapped
from quantize.gguf.importance.file import ImportanceMatrix, read_imatrix
from quantize.gguf.importance.use import WEIGHTED, importances
from quantize.gguf.mixture import Choice, ModelShape, Spec, choose_types, lossless_type
from quantize.hashes import sha256_file
from quantize.kernels.block_types import FILE_TYPES, UNQUANTIZED, Type
from quantize.kernels.chosen import CHOSEN
from quantize.methods.gguf import GgufWork
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.methods.registry import plan
from quantize.progress import Advance, progress_bar
from quantize.recipe import RunOptions

IMATRIX = "quantize.imatrix."
FILE_TYPE = "general.file_type"
#: detours that converters take: none, or the lossless file was written in this type
VIAS = ("auto", "f16", "bf16")
PROBES = 4  # tensors of which a few rows are looked at, to tell which
EXCEPTIONS = 8  # named ones


def ours(
    folder: Path, manifest: Manifest, work: GgufWork, run: RunOptions, text: Calibration | None
) -> Outcome:
    """``work``: the manifest's recipe, planned for the source. Errors: as ``GgufWork.write``."""
    file = read_gguf(folder / min(name for name in manifest.files if name.endswith(".gguf")))
    contents, _ = work.computed(run, text)
    kvs = dict(contents.kvs)
    if f"{IMATRIX}file" in kvs and (name := manifest.details.get(f"{IMATRIX}file")):
        kvs[f"{IMATRIX}file"] = (name, kvs[f"{IMATRIX}file"][1])  # its contents are known by their hash
    split_max_bytes = work.recipe.split_max_bytes
    with _bar(contents.tensors, run) as advance:
        derived = derive(file, contents.tensors, run.resolved_threads, advance, kvs, split_max_bytes)
    wanted = dict(zip(part_names(file, len(derived.sha256)), derived.sha256, strict=True))
    wanted |= {path.name: sha256_file(path) for path in license_files(work.held.whole.folder)}
    files = {name: sha256_file(folder / name) for name in manifest.files}
    out = Outcome(files, manifest.recipe, tensors=len(contents.tensors), blocks=derived.blocks)
    out.whole = [name for name, sha256 in files.items() if wanted.get(name) == sha256]
    out.differing = derived.differing
    out.metadata = gguf_metadata(file, kvs)
    for name in files.keys() - set(out.whole):
        if not name.endswith(".gguf"):
            out.files_differ.append(f"{name}: is not the source's")
    parts = [name for name in files if name.endswith(".gguf")]
    if len(parts) != len(derived.sha256):
        out.files_differ.append(f"{folder}: {len(parts)} .gguf files, the recipe gives {len(derived.sha256)}")
    elif set(parts) - set(out.whole) and not out.differing and not out.metadata:
        out.files_differ.append(
            f"{folder}: every tensor and metadata value is the same, their places are not"
        )
    return out


def strangers(path: Path, checkpoint: Checkpoint, imatrix: Path | None, run: RunOptions) -> Outcome:
    """Every tensor of the file quantized again from the source to the type that the file has.

    Errors: BadInput where it was made with an importance matrix and none is given; Unsupported where a type
    is not made here, or the source's architecture not.
    """
    file = read_gguf(path)
    _check_imatrix(file, imatrix)
    work = plan(checkpoint, GgufRecipe(type="f32", quantized_by=None))
    assert isinstance(work, GgufWork)
    matrix = read_imatrix(imatrix) if imatrix else None
    file_type = _file_type(file)
    kinds = {mapped.name: _kind(file, mapped) for mapped in work.tensors}
    specs = [Spec(m.name, m.shape, lossless_type(m.name, m.shape, Type.F32)) for m in work.tensors]
    choices = {name: Choice(kind, kind) for name, kind in kinds.items()}
    given = importances(
        matrix, specs, choices, FILE_TYPES[file_type or "q8_0"], imatrix.name if imatrix else ""
    )
    found = _Stranger(file, work, kinds, given.rows)
    via = found.via()
    tensors = found.planned(via)
    with _bar(tensors, run) as advance:
        derived = derive(file, tensors, run.resolved_threads, advance)
    kvs: Kvs = {**work.contents().kvs, **given.kvs}
    kvs = {key: value for key, value in kvs.items() if key != FILE_TYPE}
    out = Outcome(
        {each.name: sha256_file(each) for each in sorted({t.file for t in file.tensors.values()} | {path})},
        _described(file, work, kinds, file_type, via, matrix, imatrix),
        tensors=len(tensors),
        blocks=derived.blocks,
    )
    out.differing = derived.differing
    out.metadata = [each for each in gguf_metadata(file, kvs) if each.key != FILE_TYPE]
    out.remarks = [str(note.what) for note in given.notes][:EXCEPTIONS]
    return out


@dataclass(frozen=True)
class _Stranger:
    file: GgufFile
    work: GgufWork
    kinds: Mapping[str, Type]
    rows: Mapping[str, Any]

    def planned(self, via: str, only: Sequence[Mapped] | None = None) -> list[Planned]:
        return [
            planned(self.work.checkpoint, m, self.kinds[m.name], via, self.rows.get(m.name))
            for m in (self.work.tensors if only is None else only)
        ]

    def via(self) -> str:
        """The detour with which the first rows of a few tensors differ least from the file's; the shortest
        where several do."""
        quantized = [m for m in self.work.tensors if self.kinds[m.name] not in UNQUANTIZED and m.sources]
        probes = sorted(quantized, key=lambda m: m.shape[-1] * m.shape[-2])[:PROBES]
        counts = {via: sum(map(self._differing, self.planned(via, probes))) for via in VIAS}
        return min(VIAS, key=lambda via: counts[via])

    def _differing(self, tensor: Planned) -> int:
        theirs, _ = rows_of(self.file, tensor)
        if theirs is None:
            return 0
        CHOSEN.prepare(tensor.kind)
        first, rows = next(iter(chunks([tensor])))
        (made,) = make(rows, first, [(tensor, Clock())], CHOSEN)
        if isinstance(made, Exception):
            raise made
        return block_difference(tensor.kind, made, theirs[: len(rows)])[0]


def _kind(file: GgufFile, mapped: Mapped) -> Type:
    """The file's own; of a tensor that it lacks, none matters."""
    found = file.tensors.get(mapped.name)
    kind = found.kind if found is not None else Type.F32
    if kind not in CHOSEN.kinds:
        raise Unsupported(
            f"{file.path}: tensor {mapped.name} is {kind.name}, which is not made here; known: "
            f"{', '.join(sorted(each.name for each in CHOSEN.kinds))}"
        )
    return kind


def _file_type(file: GgufFile) -> str:
    """llama-quantize's spelling of what the file says it is; empty where that is no such type."""
    value = file.kvs.get(FILE_TYPE)
    return next((name for name, each in FILE_TYPES.items() if int(each.value) == value), "")


def _check_imatrix(file: GgufFile, imatrix: Path | None) -> None:
    said = {key.removeprefix(IMATRIX): value for key, value in file.kvs.items() if key.startswith(IMATRIX)}
    weighted = any(tensor.kind in WEIGHTED for tensor in file.tensors.values())
    if said and weighted and imatrix is None:
        name = Path(str(said.get("file", "unknown"))).name
        raise BadInput(
            f"{file.path}: was quantized with an importance matrix ({name}, "
            f"{said.get('entries_count', '?')} entries); give that file with --imatrix"
        )


def _described(
    file: GgufFile,
    work: GgufWork,
    kinds: Mapping[str, Type],
    file_type: str,
    via: str,
    matrix: ImportanceMatrix | None,
    imatrix: Path | None,
) -> dict[str, Any]:
    """The recipe as it can be read: the mixture, what of it the file does otherwise, matrix, detour."""
    out: dict[str, Any] = {"method": "gguf", "type": file_type or "mixed", "via": via}
    if imatrix is not None:
        out |= {"imatrix": imatrix.name, "imatrix_sha256": sha256_file(imatrix)}
    counts: dict[str, int] = {}
    for kind in kinds.values():
        counts[kind.name] = counts.get(kind.name, 0) + 1
    out["tensor_types"] = dict(sorted(counts.items()))
    if not file_type:
        return out
    mixture = FILE_TYPES[file_type]
    lossless = Type.F16 if via == "f16" else Type.BF16
    specs = [Spec(m.name, m.shape, lossless_type(m.name, m.shape, lossless)) for m in work.tensors]
    shape = ModelShape.from_kvs(
        {key: value for key, (value, _) in work.family.kvs.items()}, work.family.architecture
    )
    usual = choose_types(specs, mixture, shape, has_imatrix=matrix is not None)
    odd = [name for name, choice in usual.items() if kinds[name] is not choice.kind]
    if odd:
        named = {name: f"{kinds[name].name} instead of {usual[name].kind.name}" for name in odd[:EXCEPTIONS]}
        out["otherwise"] = {"tensors": len(odd), **named}
    return out


def _bar(tensors: Sequence[Planned], run: RunOptions) -> AbstractContextManager[Advance]:
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    return progress_bar("making it again", weights, "weights", run.progress)
