"""GGUF: one file with weights, tokenizer and metadata, read by llama.cpp and everything built on it.

The checkpoint is read once, tensor by tensor; blocks are quantized by llama.cpp's own quantizers, so the
tensors are those that llama-quantize would have written.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.artifact.artifact import MANIFEST, Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.base import Conversion
from quantize.errors import BadInput, Unsupported
from quantize.methods.base import Method
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.progress import progress_bar
from quantize.recipe import RunOptions

if TYPE_CHECKING:
    from quantize.gguf.container.reader import GgufFile
    from quantize.gguf.container.writer import Planned
    from quantize.gguf.families.base import FamilyPlan, Mapped
    from quantize.gguf.importance.use import Importances
    from quantize.gguf.mixture import Choice, Overrides, Spec
    from quantize.kernels.block_types import Type


@dataclass(frozen=True)
class _Work:
    """Everything known from headers: the family's plan and the type of every tensor, in the order of
    writing."""

    plan: "FamilyPlan"
    choices: "dict[str, Choice]"
    tensors: "list[Mapped]"
    specs: "list[Spec]"


class Gguf(Method):
    recipe_class = GgufRecipe
    summary = "one .gguf file for llama.cpp and programs built on it (Ollama, LM Studio, ...)"
    needs = (("llama-cpp-python", "llama_cpp"), ("gguf", "gguf"))
    on_device = False
    extra = "llamacpp"
    runtime = "llamacpp"
    loads_in = ("llama.cpp", "Ollama", "LM Studio", "transformers")
    hf_folder = False

    def __init__(self) -> None:
        self._sources: dict[Path, dict[str, tuple[str, ...]]] = {}

    def check(self, checkpoint: Checkpoint, recipe: GgufRecipe) -> None:
        from quantize.gguf.tokenizer.metadata import tokenizer_metadata

        _importances(_prepare(checkpoint, recipe), recipe)
        tokenizer_metadata(checkpoint, pre=recipe.pre_tokenizer)

    def convert(
        self,
        checkpoint: Checkpoint,
        recipe: GgufRecipe,
        stage: Path,
        run: RunOptions,
        calibration: Calibration | None,
    ) -> Conversion:
        from quantize.gguf.container.writer import write_gguf
        from quantize.kernels import llamacpp

        work = _prepare(checkpoint, recipe)
        contents = file_contents(checkpoint, recipe, work)
        planned = contents.tensors
        weights = sum(int(np.prod(t.shape)) for t in planned)
        title = f"{checkpoint.name} to {recipe.type}"
        with progress_bar(title, weights, "weights", run.progress) as progress:
            written = write_gguf(
                stage / contents.name,
                contents.kvs,
                planned,
                threads=run.resolved_threads,
                split_max_bytes=recipe.split_max_bytes,
                progress=progress,
            )
        self._sources[stage.absolute()] = {m.name: m.sources for m in work.tensors}
        counts: dict[str, int] = {}
        for tensor in planned:
            counts[tensor.kind.name] = counts.get(tensor.kind.name, 0) + 1
        return Conversion(
            weight_bytes=written.data_bytes,
            engine=f"llama.cpp {llamacpp.revision()} (ggml block quantizers)",
            libraries=("gguf", "llama-cpp-python"),
            notes=contents.notes,
            sha256={path.name: digest for path, digest in written.files.items()},
            details={
                "llama.cpp": llamacpp.describe(),
                "tensor_types": dict(sorted(counts.items())),
                "sources": {m.name: list(m.sources) for m in work.tensors},
                **{
                    key: value
                    for key, (value, _) in contents.kvs.items()
                    if key.startswith("quantize.imatrix.")
                },
            },
        )

    def kl_tolerance(self, recipe: GgufRecipe) -> float:
        """llama.cpp rounds activations to the weights' own type (F16, BF16), or to 8 bits where they are
        quantized."""
        return {"f32": 1e-7, "f16": 1e-5, "bf16": 5e-4}.get(recipe.type, 2e-2)

    def quantized(self, stage: Path, recipe: GgufRecipe) -> dict[str, str]:
        from quantize.kernels.block_types import UNQUANTIZED

        sources = self._sources.get(stage.absolute()) or _recorded_sources(stage)
        return {
            source: tensor.kind.name
            for name, tensor in _open(stage).tensors.items()
            if tensor.kind not in UNQUANTIZED
            for source in sources.get(name, ())
        }

    def activation_types(self, stage: Path, recipe: GgufRecipe) -> dict[str, str]:
        """Source name -> how llama.cpp rounds, on CPU, the activations that meet that tensor; float32 ones
        are left out."""
        from quantize.kernels.block_types import ACTIVATIONS

        sources = self._sources.get(stage.absolute()) or _recorded_sources(stage)
        return {
            source: ACTIVATIONS[tensor.kind]
            for name, tensor in _open(stage).tensors.items()
            if tensor.kind in ACTIVATIONS
            for source in sources.get(name, ())
        }

    def expected(self, checkpoint: Checkpoint, recipe: GgufRecipe) -> set[str]:
        from quantize.gguf.mixture import may_be_quantized
        from quantize.kernels.block_types import FILE_TYPES, UNQUANTIZED

        if not FILE_TYPES[recipe.type].quantized:
            return set()
        work = _prepare(checkpoint, recipe)
        return {
            source
            for mapped in work.tensors
            if may_be_quantized(mapped.name, mapped.shape)
            and work.choices[mapped.name].meant not in UNQUANTIZED
            for source in mapped.sources
        }

    def dequantize(
        self, stage: Path, recipe: GgufRecipe, checkpoint: Checkpoint
    ) -> Iterator[tuple[str, np.ndarray]]:
        from quantize.gguf.families.plan import dequantize

        yield from dequantize(_open(stage), checkpoint)


def _prepare(checkpoint: Checkpoint, recipe: GgufRecipe) -> _Work:
    from quantize.gguf.families.plan import plan
    from quantize.gguf.mixture import ModelShape, Spec, choose_types, lossless_type
    from quantize.kernels.block_types import FILE_TYPES

    family = plan(checkpoint)
    file_type = FILE_TYPES[recipe.type]
    if not file_type.quantized and (
        recipe.tensor_types or recipe.output_type or recipe.token_embedding_type or recipe.imatrix
    ):
        raise Unsupported(f"{recipe.short}: tensor types and importances apply only to quantized files")
    specs = [
        Spec(m.name, m.shape, lossless_type(m.name, m.shape, _source_type(checkpoint, m, recipe)))
        for m in family.tensors
    ]
    shape = ModelShape.from_kvs({key: value for key, (value, _) in family.kvs.items()}, family.architecture)
    choices = choose_types(
        specs, file_type, shape, overrides=_given(recipe), has_imatrix=recipe.imatrix is not None
    )
    by_name = {m.name: m for m in family.tensors}
    # A lossless file has the converter's order, a quantized one llama-quantize's.
    order = list(choices) if file_type.quantized else list(by_name)
    return _Work(family, choices, [by_name[name] for name in order], specs)


@dataclass(frozen=True)
class Contents:
    """All of the file but the data of its tensors, which are read when they are written."""

    name: str
    kvs: dict[str, Any]
    tensors: "list[Planned]"
    notes: list[Note]


def file_contents(checkpoint: Checkpoint, recipe: GgufRecipe, work: _Work | None = None) -> Contents:
    """Errors: as ``Gguf.check``."""
    from quantize.gguf import metadata
    from quantize.gguf.tokenizer.metadata import tokenizer_metadata
    from quantize.kernels.block_types import FILE_TYPES

    file_type, work = FILE_TYPES[recipe.type], work or _prepare(checkpoint, recipe)
    tokenizer = tokenizer_metadata(checkpoint, pre=recipe.pre_tokenizer)
    general = metadata.load_metadata(checkpoint, [(m.name, m.shape) for m in work.plan.tensors])
    by = recipe.quantized_by if file_type.quantized else None
    kvs = {**metadata.general_kvs(general, work.plan.architecture, quantized_by=by), **work.plan.kvs}
    kinds = metadata.file_type_kvs(file_type)
    # llama.cpp's converter writes the file type before the tokenizer, its quantizer moves it to the end.
    kvs |= {**tokenizer.kvs, **kinds} if file_type.quantized else {**kinds, **tokenizer.kvs}
    given = _importances(work, recipe)
    tensors = [
        _planned(checkpoint, mapped, work.choices[mapped.name], recipe, given.rows) for mapped in work.tensors
    ]
    notes = [*work.plan.notes, *tokenizer.notes, *_fallback_notes(work), *given.notes]
    return Contents(metadata.file_name(general, file_type), {**kvs, **given.kvs}, tensors, notes)


def _importances(work: _Work, recipe: GgufRecipe) -> "Importances":
    from quantize.gguf.importance.use import importances
    from quantize.kernels.block_types import FILE_TYPES

    return importances(
        recipe.importance(),
        work.specs,
        work.choices,
        FILE_TYPES[recipe.type],
        Path(recipe.imatrix or "").name,
    )


def _given(recipe: GgufRecipe) -> "Overrides":
    from quantize.gguf.mixture import Overrides
    from quantize.kernels.block_types import TENSOR_TYPES

    pairs = [entry.rpartition("=") for entry in recipe.tensor_types]
    return Overrides(
        tensor_types=tuple((pattern, TENSOR_TYPES[kind]) for pattern, _, kind in pairs),
        output=TENSOR_TYPES[recipe.output_type] if recipe.output_type else None,
        token_embedding=TENSOR_TYPES[recipe.token_embedding_type] if recipe.token_embedding_type else None,
        pure=recipe.pure,
    )


def _source_type(checkpoint: Checkpoint, mapped: "Mapped", recipe: GgufRecipe) -> "Type":
    """The type that holds the tensor without loss, or the one that the detour rounds it to."""
    from quantize.kernels.block_types import SAME_BITS, TENSOR_TYPES, Type

    if recipe.via != "auto":
        return TENSOR_TYPES[recipe.via]
    dtypes = {checkpoint.tensors[name].dtype for name in mapped.sources}
    return SAME_BITS.get(dtypes.pop(), Type.F32) if mapped.pure and len(dtypes) == 1 else Type.F32


def _planned(
    checkpoint: Checkpoint,
    mapped: "Mapped",
    choice: "Choice",
    recipe: GgufRecipe,
    rows: dict[str, np.ndarray],
) -> Any:
    from quantize.gguf.container.writer import Planned
    from quantize.gguf.mixture import lossless_type
    from quantize.kernels.block_types import SAME_BITS, TENSOR_TYPES, Type

    detour = None
    if recipe.via in ("f16", "bf16"):
        through = lossless_type(mapped.name, mapped.shape, TENSOR_TYPES[recipe.via])
        stored = {SAME_BITS.get(checkpoint.tensors[name].dtype) for name in mapped.sources}
        detour = None if through is Type.F32 or stored == {through} else through

    def load() -> np.ndarray:
        dtypes = {checkpoint.tensors[name].dtype for name in mapped.sources}
        raw = mapped.pure and len(dtypes) == 1 and dtypes <= set(SAME_BITS)
        read: Callable[[str], np.ndarray] = checkpoint.read if raw else checkpoint.read_float32
        built = np.asarray(mapped.build([np.asarray(read(name)) for name in mapped.sources]))
        assert built.shape == mapped.shape, f"{mapped.name}: built {built.shape}, planned {mapped.shape}"
        return built.reshape(-1, mapped.shape[-1])

    def diagnose() -> None:
        for name in mapped.sources:
            checkpoint.read_float32(name)

    return Planned(
        mapped.name, mapped.shape, choice.kind, load, diagnose, via=detour, importance=rows.get(mapped.name)
    )


def _fallback_notes(work: _Work) -> list[Note]:
    from quantize.kernels.block_types import UNQUANTIZED

    notes = []
    for mapped in work.tensors:
        choice = work.choices[mapped.name]
        if not choice.why:
            continue
        # A tensor that ends up unquantized is named by each of its sources: they will be missed.
        several = len(mapped.sources) > 1 and choice.kind not in UNQUANTIZED
        for tensor in [mapped.name] if several else mapped.sources:
            notes.append(
                Note(tensor=tensor, what=f"{choice.kind.name} instead of {choice.meant.name}", why=choice.why)
            )
    return notes


def _open(stage: Path) -> "GgufFile":
    from quantize.gguf.container.reader import read_gguf

    files = sorted(stage.glob("*.gguf"))
    if not files:
        raise BadInput(f"{stage}: no .gguf file")
    return read_gguf(files[0])


def _recorded_sources(stage: Path) -> dict[str, tuple[str, ...]]:
    manifest = stage / MANIFEST
    if not manifest.is_file():
        raise BadInput(f"{stage}: no {MANIFEST}, which says which source tensors these were made from")
    details = json.loads(manifest.read_text(encoding="utf-8"))["details"]
    return {name: tuple(sources) for name, sources in details["sources"].items()}
