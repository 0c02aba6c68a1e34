"""What GPTQ, AWQ, rounding to nearest and compressed-tensors plan alike: which matrices of the decoder are
packed, in groups of what size, and why others are not."""

import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.entries import Entries
from quantize.engines.base import Conversion
from quantize.engines.gptqmodel.load import load_packed
from quantize.engines.isolated.known import ENGINES
from quantize.engines.native.packed import openers
from quantize.errors import BadInput, Unsupported
from quantize.formats.awq import PACKED_OUTPUTS, AwqFormat
from quantize.formats.gptq import PACKED_ROWS, GptqFormat
from quantize.formats.packed import PackedFormat
from quantize.hf.matrices import DecoderLinears, Linear, decoder_linears
from quantize.methods.base import Costs, Held, Method, R, Work
from quantize.methods.overrides import Override, first_that_fits
from quantize.recipe import AUTO, Recipe, RunOptions
from quantize.units import spell_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: what ``auto`` tries, in this order; whole rows where none fits
AUTOMATIC_GROUPS = (128, 64, 32)
#: PyTorch's kernel of 4 bits for CPUs, which transformers takes there, refuses other numbers of outputs
KERNEL_OUTPUTS = 16
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
AWQ_GROUP_SIZES = (32, 64, 128)


def whole(value: Any) -> Any:
    """Text of a whole number -> int, so that a parameter with a list of allowed numbers can be spelled on the
    command line."""
    return int(value) if isinstance(value, str) and value.strip().lstrip("-").isdigit() else value


def patterns(value: Any) -> Any:
    """One pattern or several. Errors: ValueError where one is no regular expression."""
    several = [value] if isinstance(value, str) else value
    for pattern in several if isinstance(several, list | tuple) else ():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return several


#: of engines in environments of their own, which hold the whole model
ISOLATED = Costs(
    start_s=45,
    seconds=4.0,
    base_bytes=900 << 20,
    bench_bytes=700 << 20,
    eval_bytes=760 << 20,
    copies=2.0,
    saves_twice=True,
    reads_files=True,
)

Patterns = Annotated[tuple[str, ...], BeforeValidator(patterns)]
GroupSize = Annotated[Literal["auto", -1, 16, 32, 64, 128, 256, 512, 1024], BeforeValidator(whole)]


@dataclass(frozen=True)
class Packing:
    """What a recipe asks of a format. ``group_size``: a number, -1 for whole rows, or ``auto``. ``skip``:
    patterns of names of matrices that are not packed; ``overrides``: of those that are packed otherwise;
    ``head``: the output layer too."""

    format: str  # gptq or awq
    bits: int
    group_size: int | str
    symmetric: bool
    short: str
    skip: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    head: bool = False
    #: of ``skip``, those that need not fit any
    usual: tuple[str, ...] = ()
    #: the source's tensors that may be packed; None: all
    only: frozenset[str] | None = None

    def made(self, group_size: int, linears: tuple[Linear, ...], decoder: DecoderLinears) -> PackedFormat:
        kind = AwqFormat if self.format == "awq" else GptqFormat
        return kind(self.bits, group_size, self.symmetric, linears, decoder)

    def multiples(self, linear: Linear) -> tuple[int, int]:
        """Its inputs and outputs must be multiples of these to be packed, and to be computed with."""
        given = self.given(linear)
        bits = given.bits if given and given.bits else self.bits
        inputs = 1 if self.format == "awq" else PACKED_ROWS[bits]
        outputs = PACKED_OUTPUTS if self.format == "awq" else PACKED_ROWS[bits]
        return inputs, max(outputs, KERNEL_OUTPUTS if bits == 4 else 1)

    def given(self, linear: Linear) -> Override | None:
        return first_that_fits(self.overrides, linear.name)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        return AWQ_GROUP_SIZES if self.format == "awq" else GROUP_SIZES


@dataclass(frozen=True)
class Planned:
    """``notes``: for each matrix of the source that is not packed, and for the groups that ``auto`` chose."""

    format: PackedFormat
    notes: tuple[Note, ...]

    @property
    def expected(self) -> frozenset[str]:
        return frozenset(self.format.by_source)


class PackedMethod(Method[R]):
    text_only: ClassVar[bool] = False

    def environment(self, recipe: Recipe) -> str:
        engine = getattr(recipe, "engine", "")
        return engine if engine in ENGINES else ""

    def costs_of(self, recipe: Recipe) -> Costs:
        return ISOLATED if self.environment(recipe) else self.costs

    def open(
        self, folder: Path, dtype: str, device: str, exact: bool, trust_remote_code: bool
    ) -> "PreTrainedModel":
        return load_packed(folder, dtype, device, exact=exact, trust_remote_code=trust_remote_code)


class PackedWork(Work[R]):
    def __init__(self, held: Held, recipe: R, planned: Planned):
        super().__init__(held, recipe, planned.format, planned.expected)
        self.planned = planned

    @property
    def chosen(self) -> str:
        """The groups of ``auto``."""
        if getattr(self.recipe, "group_size", None) != AUTO:
            return ""
        size = self.planned.format.group_size
        why = next((note.why for note in self.planned.notes if note.tensor == "*"), "")
        words = f"groups of {size} inputs" if size > 0 else "one scale for each output"
        return words + (f", as {why}" if why else "")

    def _otherwise(self) -> dict[str, dict[str, str]]:
        """How matrices are stored that an override names."""
        format = self.planned.format
        named = dict(format.special)
        found = {each.name: format.called(each) for each in format.linears if each.name in named}
        return {"overridden": found} if found else {}

    def read_by_entry(self, stage: Path) -> Iterator[tuple[str, np.ndarray | Entries]]:
        return self.planned.format.by_entry(stage, self.checkpoint)

    @abstractmethod
    def make(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        """Write weights and configs into ``stage``."""

    def write(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        made = self.make(stage, run, calibration)
        made.loads_in, loading = openers(self.planned.format, stage)
        made.notes = [*self.planned.notes, *made.notes, *loading]
        made.details = {"group_size": self.planned.format.group_size, **self._otherwise(), **made.details}
        return made


def plan_packing(checkpoint: Checkpoint, packing: Packing) -> Planned:
    """Errors: Unsupported where transformers lacks the architecture, no matrix of a decoder layer can be
    packed, or groups of the size that was asked for do not divide the inputs of one."""
    decoder = decoder_linears(checkpoint)
    head = _head(checkpoint, decoder, packing)
    misfits = _misfits(decoder, packing) | _skipped(checkpoint, (*decoder, *head), packing)
    if packing.only is not None:
        unpacked = (linear.source for linear in decoder if linear.source not in packing.only)
        misfits |= dict.fromkeys(unpacked, "is not packed in the source")
    linears = tuple(linear for linear in (*decoder, *head) if linear.source not in misfits)
    if not linears:
        first = next(iter(misfits.items()), None)
        why = f"{first[0]} {first[1]}" if first else "it has no linear layer in a decoder layer"
        raise Unsupported(
            f"{checkpoint.source}: {packing.short} finds nothing to quantize: {why}; "
            "try a gguf, quanto or bnb recipe"
        )
    size = _group_size(checkpoint, linears, packing)
    format = packing.made(size, linears, decoder)
    special = {each.name: given.grid(format.grid) for each in linears if (given := packing.given(each))}
    others = tuple((name, grid) for name, grid in special.items() if grid != format.grid)
    format = replace(format, special=others)
    notes = _kept_notes(checkpoint, decoder, frozenset(format.by_source), misfits)
    if format.untied:
        notes.insert(0, _untied_note(checkpoint, format, format.untied))
    if packing.group_size == AUTO and size != AUTOMATIC_GROUPS[0]:
        notes.insert(0, _automatic_note(linears, size, packing))
    return Planned(format, tuple(notes))


def _misfits(decoder: DecoderLinears, packing: Packing) -> dict[str, str]:
    """Source's tensors that hold a matrix which whole words do not, and why."""
    found: dict[str, str] = {}
    for linear in decoder:
        in_multiple, out_multiple = packing.multiples(linear)
        pairs = ((linear.inputs, in_multiple, "inputs"), (linear.outputs, out_multiple, "outputs"))
        for size, multiple, side in pairs:
            if size % multiple and linear.source not in found:
                found[linear.source] = f"has {size} {side}, and {packing.short} packs multiples of {multiple}"
    return found


def _head(checkpoint: Checkpoint, decoder: DecoderLinears, packing: Packing) -> tuple[Linear, ...]:
    """The output layer, where the recipe wants it. Errors: Unsupported where it cannot be packed."""
    if not packing.head:
        return ()
    head = decoder.output
    if head is None:
        raise Unsupported(
            f"{checkpoint.source}: has no output layer that is one matrix; drop lm_head from {packing.short}"
        )
    pairs = zip((head.inputs, head.outputs), packing.multiples(head), ("inputs", "outputs"), strict=True)
    for size, multiple, side in pairs:
        if size % multiple:
            raise Unsupported(
                f"{checkpoint.source}: its output layer has {size} {side}, and {packing.short} packs "
                f"multiples of {multiple}; drop lm_head"
            )
    return (head,)


def _untied_note(checkpoint: Checkpoint, format: PackedFormat, head: Linear) -> Note:
    bits = {"I32": 32, "F16": 16}
    size = sum(bits[dtype] // 8 * math.prod(shape) for _, dtype, shape in format.matrix_entries(head))
    return Note(
        tensor=f"{head.name}.weight",
        what=f"stored apart from {head.source}, to which it was tied: {spell_size(size)} more",
        why="lm_head=true quantizes it, and a lookup needs the embedding's rows",
    )


def _skipped(checkpoint: Checkpoint, decoder: Sequence[Linear], packing: Packing) -> dict[str, str]:
    """Of a tensor that holds several matrices, all stay. Errors: BadInput where a pattern fits none."""
    found: dict[str, str] = {}
    overrides = {each.pattern: "overrides" for each in packing.overrides}
    for pattern, where in {**dict.fromkeys(packing.skip, "skip"), **overrides}.items():
        mine = [linear for linear in decoder if re.search(pattern, linear.name)]
        if not mine and pattern not in packing.usual:
            some = decoder[0] if decoder else None
            raise BadInput(
                f"{checkpoint.source}: {where}={pattern} fits no matrix of its decoder layers"
                + (f"; they have names such as {some.name}" if some else "")
            )
        for linear in mine:
            given = packing.given(linear)
            if pattern in packing.skip or (given and given.skip and given.pattern == pattern):
                found[linear.source] = f"matches {pattern}, which the recipe skips"
    return found


def _group_size(checkpoint: Checkpoint, every: tuple[Linear, ...], packing: Packing) -> int:
    """Of all that no override says. Errors: Unsupported where a group size does not fit."""
    for linear in every:
        given = packing.given(linear)
        if given and given.group_size and given.group_size > 0 and linear.inputs % given.group_size:
            raise Unsupported(
                f"{checkpoint.source}: {linear.source} has {linear.inputs} inputs, which groups of "
                f"{given.group_size} (overrides={given.pattern}) do not divide; give another"
            )
    linears = [each for each in every if not ((given := packing.given(each)) and given.group_size)]
    if packing.group_size == AUTO:
        sizes = (size for size in AUTOMATIC_GROUPS if all(linear.inputs % size == 0 for linear in linears))
        return next(sizes, -1)
    size = int(packing.group_size)
    odd = next((linear for linear in linears if size > 0 and linear.inputs % size), None)
    if odd is None:
        return size
    fitting = [n for n in packing.group_sizes if all(linear.inputs % n == 0 for linear in linears)]
    base = packing.short.partition(":")[0]
    spellings = [f"{base}:group_size={n}" for n in sorted(fitting, reverse=True)[:2]]
    raise Unsupported(
        f"{checkpoint.source}: {odd.source} has {odd.inputs} inputs, which groups of {size} do not divide; "
        f"use {' or '.join([*spellings, f'{base}:group_size=-1'])}"
    )


def check_outputs(checkpoint: Checkpoint, planned: Planned, short: str, multiple: int) -> None:
    """Errors: Unsupported naming the first matrix whose outputs an engine does not take."""
    for linear in planned.format.linears:
        if linear.outputs % multiple:
            raise Unsupported(
                f"{checkpoint.source}: {linear.source} has {linear.outputs} outputs, and {short} "
                f"needs a multiple of {multiple}; try a gguf, quanto or bnb recipe"
            )


def _automatic_note(every: tuple[Linear, ...], size: int, packing: Packing) -> Note:
    linears = [each for each in every if not ((given := packing.given(each)) and given.group_size)]
    tried = [n for n in AUTOMATIC_GROUPS if n > size] if size > 0 else list(AUTOMATIC_GROUPS)
    odd = next(linear for linear in linears if linear.inputs % tried[-1])
    what = f"groups of {size} inputs" if size > 0 else "one scale for each output"
    return Note(
        tensor="*", what=what, why=f"{tried[-1]} does not divide the {odd.inputs} inputs of {odd.source}"
    )


def _kept_notes(
    checkpoint: Checkpoint, decoder: DecoderLinears, quantized: frozenset[str], misfits: dict[str, str]
) -> list[Note]:
    """One note for every matrix that stays in the source's dtype, and for every part of a model that is not
    its text model."""
    notes = [_beside_note(checkpoint, module, sources) for module, sources in decoder.beside]
    beside = {source for _, sources in decoder.beside for source in sources}
    reasons = dict(decoder.kept) | {name: f"it {why}" for name, why in misfits.items()}
    for name, info in checkpoint.tensors.items():
        if len(info.shape) < 2 or name in quantized or name in beside:
            continue
        if name in reasons:
            why = reasons[name]
        elif "embed" in name and checkpoint.config.get("tie_word_embeddings"):
            why = (
                "embedding and output head are one tensor here, "
                "and loaders of this format expect both unquantized"
            )
        else:
            why = "loaders of this format expect embedding and output head unquantized"
        notes.append(Note(tensor=name, what=f"kept in {info.dtype}", why=why))
    return notes


def _beside_note(checkpoint: Checkpoint, module: str, sources: tuple[str, ...]) -> Note:
    infos = [checkpoint.tensors[source] for source in sources if source in checkpoint.tensors]
    share = sum(info.parameters for info in infos) / checkpoint.parameters
    dtypes = ", ".join(dict.fromkeys(info.dtype for info in infos))
    return Note(
        tensor=module,
        what=f"kept in {dtypes}: {share:.1%} of the model's weights",
        why="the text model is quantized, not what sees or hears",
    )
