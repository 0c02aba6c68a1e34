"""GGUF for llama.cpp: the family's plan of the tensors, the type of each by llama.cpp's rules, quantized by
its own quantizers."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.entries import Entries
from quantize.engines.base import Conversion, Engine
from quantize.engines.ggml import GGML, Contents, planned, write_files
from quantize.engines.native.importance import VERSION, OwnImatrix, own_imatrix
from quantize.errors import StepFailed, Unsupported
from quantize.formats.base import Format
from quantize.formats.gguf import GgufFormat, file_bytes
from quantize.gguf import metadata
from quantize.gguf.families.base import Mapped
from quantize.gguf.families.plan import plan
from quantize.gguf.importance.use import Importances, importances, planned_importances
from quantize.gguf.mixture import (
    ModelShape,
    Overrides,
    Spec,
    choose_types,
    lossless_type,
    may_be_quantized,
)
from quantize.gguf.tokenizer.metadata import tokenizer_metadata
from quantize.hf.matrices import decoder_linears
from quantize.kernels.block_types import FILE_TYPES, SAME_BITS, TENSOR_TYPES, UNQUANTIZED, Type
from quantize.methods.base import Costs, Held, Method, Work
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.recipe import AUTO, Recipe, RunOptions

#: where the importances are computed first
IMATRIX_COSTS = Costs(start_s=12, seconds=0.6, base_bytes=650 << 20, stored_copies=0.0)


class Gguf(Method[GgufRecipe]):
    recipe_class: ClassVar[type[Recipe]] = GgufRecipe
    format: ClassVar[type[Format]] = GgufFormat
    engine: ClassVar[Engine] = GGML
    costs: ClassVar[Costs] = Costs(
        start_s=6, seconds=0.15, base_bytes=90 << 20, bench_bytes=90 << 20, stored_copies=0.0
    )
    #: a family decides what of a model that also sees is left out, and says so
    text_only: ClassVar[bool] = False
    summary: ClassVar[str] = "one .gguf file for llama.cpp and programs built on it (Ollama, LM Studio, ...)"

    def work(self, held: Held, recipe: GgufRecipe) -> "GgufWork":
        return GgufWork(held, recipe)


class GgufWork(Work[GgufRecipe]):
    """``family``: what the GGUF of the model holds; ``choices``: the type of every tensor; ``tensors``: in
    the order of writing."""

    def __init__(self, held: Held, recipe: GgufRecipe):
        checkpoint = held.checkpoint
        self.family = family = plan(checkpoint)
        if family.left_out:
            there = {name: i for name, i in checkpoint.tensors.items() if name not in family.left_out}
            checkpoint = replace(checkpoint, tensors=there)
            held = replace(held, checkpoint=checkpoint)
        self._file_type = FILE_TYPES[recipe.type]
        if not self._file_type.quantized and (
            recipe.tensor_types or recipe.output_type or recipe.token_embedding_type or recipe.imatrix
        ):
            raise Unsupported(f"{recipe.short}: tensor types and importances apply only to quantized files")
        self._specs = [
            Spec(m.name, m.shape, lossless_type(m.name, m.shape, _source_type(checkpoint, m, recipe)))
            for m in family.tensors
        ]
        shape = ModelShape.from_kvs(
            {key: value for key, (value, _) in family.kvs.items()}, family.architecture
        )
        overrides, has_imatrix = _given(recipe), recipe.imatrix is not None
        self.choices = choose_types(
            self._specs,
            self._file_type,
            shape,
            overrides=overrides,
            has_imatrix=has_imatrix,
            unseen=family.ahead,
        )
        by_name = {m.name: m for m in family.tensors}
        # A lossless file has the converter's order, a quantized one llama-quantize's.
        order = list(self.choices) if self._file_type.quantized else list(by_name)
        self.tensors = [by_name[name] for name in order]
        format = GgufFormat(recipe.type, tuple(family.tensors), recipe.pre_tokenizer)
        super().__init__(held, recipe, format, self._meant())
        if recipe.calibrated:
            self._check_runs()
        self._importances = self._read_importances()
        self._tokenizer = tokenizer_metadata(checkpoint, pre=recipe.pre_tokenizer)

    def _meant(self) -> frozenset[str]:
        if not self._file_type.quantized:
            return frozenset()
        return frozenset(
            source
            for mapped in self.tensors
            if may_be_quantized(mapped.name, mapped.shape)
            and self.choices[mapped.name].meant not in UNQUANTIZED
            for source in mapped.sources
        )

    @property
    def engine(self) -> str:
        return f"importances {VERSION}" if self.recipe.calibrated else ""

    def _check_runs(self) -> None:
        """Errors: Unsupported where transformers, which computes the importances, lacks the architecture."""
        try:
            decoder_linears(self.held.whole)
        except Unsupported as error:
            raise Unsupported(f"{self.recipe.short}: importances cannot be computed: {error}") from None

    def _read_importances(self) -> Importances:
        name = Path(self.recipe.imatrix or "").name
        if self.recipe.calibrated:
            return planned_importances(name)
        return importances(self.recipe.importance(), self._specs, self.choices, self._file_type, name)

    def contents(self, given: Importances | None = None) -> Contents:
        """Of the file; every tensor is read when it is written. ``given``: the importances, where they are
        not the plan's own."""
        given = given or self._importances
        recipe, family, tokenizer = self.recipe, self.family, self._tokenizer
        quantized = self._file_type.quantized
        general = metadata.load_metadata(self.checkpoint, [(m.name, m.shape) for m in family.tensors])
        by = recipe.quantized_by if quantized else None
        kvs = {**metadata.general_kvs(general, family.architecture, quantized_by=by), **family.kvs}
        kinds = metadata.file_type_kvs(self._file_type)
        # llama.cpp's converter writes the file type before the tokenizer, its quantizer moves it to the end.
        kvs |= {**tokenizer.kvs, **kinds} if quantized else {**kinds, **tokenizer.kvs}
        tensors = [
            planned(self.checkpoint, m, self.choices[m.name].kind, recipe.via, given.rows.get(m.name))
            for m in self.tensors
        ]
        notes = [*family.notes, *tokenizer.notes, *self._fallback_notes(), *given.notes]
        return Contents(metadata.file_name(general, self._file_type), {**kvs, **given.kvs}, tensors, notes)

    @cached_property
    def output_bytes(self) -> int:
        """With ``imatrix`` auto but for the length of the text's name."""
        contents = self.contents()
        return file_bytes(contents.kvs, contents.tensors, self.recipe.split_max_bytes)

    def write(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        contents, own = self.computed(run, calibration)
        (made,) = self._write([self], [contents], [stage], run)
        if isinstance(made, Exception):
            raise made
        if own is not None:
            made.libraries = (*made.libraries, "torch", "transformers")
            made.details["imatrix"] = own.details(run.scratch)
            made.shared = own.shared
        return made

    def computed(
        self, run: RunOptions, calibration: Calibration | None
    ) -> tuple[Contents, OwnImatrix | None]:
        """What is written; with importances from ``calibration`` where the recipe asks for them, and how
        those came about."""
        if not self.recipe.calibrated:
            return self.contents(), None
        given, own = self._compute(run, calibration)
        return self.contents(given), own

    @property
    def reading(self) -> Hashable | None:
        """Files of the same tensors in the same order, whatever their types."""
        if self.recipe.calibrated:
            return None
        return self.checkpoint.source, tuple(mapped.name for mapped in self.tensors)

    @classmethod
    def write_together(
        cls, works: Sequence["GgufWork"], stages: Sequence[Path], run: RunOptions
    ) -> list[Conversion | Exception]:
        return cls._write(works, [work.contents() for work in works], stages, run)

    @staticmethod
    def _write(
        works: Sequence["GgufWork"], contents: Sequence[Contents], stages: Sequence[Path], run: RunOptions
    ) -> list[Conversion | Exception]:
        title = f"{works[0].checkpoint.name} to {', '.join(work.recipe.type for work in works)}"
        parts = [
            (its, work.tensors, stage, work.recipe.split_max_bytes)
            for work, its, stage in zip(works, contents, stages, strict=True)
        ]
        return write_files(parts, run, title)

    def read_by_entry(self, stage: Path) -> Iterator[tuple[str, np.ndarray | Entries]]:
        assert isinstance(self.format, GgufFormat)
        return self.format.by_entry(stage, self.checkpoint)

    def _compute(self, run: RunOptions, calibration: Calibration | None) -> tuple[Importances, OwnImatrix]:
        if calibration is None:
            raise StepFailed(f"{self.recipe.short}: importances need a calibration text; give --calibration")
        own = own_imatrix(self.held.whole, calibration, Path(calibration.record.source).name, run)
        matrix = own.computed.matrix
        return importances(matrix, self._specs, self.choices, self._file_type, AUTO), own

    def _fallback_notes(self) -> list[Note]:
        notes = []
        for mapped in self.tensors:
            choice = self.choices[mapped.name]
            if not choice.why:
                continue
            # A tensor that ends up unquantized is named by each of its sources: they will be missed.
            several = len(mapped.sources) > 1 and choice.kind not in UNQUANTIZED
            what = f"{choice.kind.name} instead of {choice.meant.name}"
            for tensor in [mapped.name] if several else mapped.sources:
                notes.append(Note(tensor=tensor, what=what, why=choice.why))
        return notes


def _given(recipe: GgufRecipe) -> Overrides:
    pairs = [entry.rpartition("=") for entry in recipe.tensor_types]
    return Overrides(
        tensor_types=tuple((pattern, TENSOR_TYPES[kind]) for pattern, _, kind in pairs),
        output=TENSOR_TYPES[recipe.output_type] if recipe.output_type else None,
        token_embedding=TENSOR_TYPES[recipe.token_embedding_type] if recipe.token_embedding_type else None,
        pure=recipe.pure,
    )


def _source_type(checkpoint: Checkpoint, mapped: Mapped, recipe: GgufRecipe) -> Type:
    """The type that holds the tensor without loss, or the one that the detour rounds it to."""
    if recipe.via != "auto":
        return TENSOR_TYPES[recipe.via]
    dtypes = {checkpoint.tensors[name].dtype for name in mapped.sources}
    return SAME_BITS.get(dtypes.pop(), Type.F32) if mapped.pure and len(dtypes) == 1 else Type.F32
