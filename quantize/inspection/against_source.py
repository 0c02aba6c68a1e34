"""What is wrong with a quantized file, told from itself and, where it is given, from its source: weights,
settings, chat templates, tokenizer."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.templates import folder_templates
from quantize.checkpoint.tensors import StoredTensors
from quantize.errors import QuantwrightError
from quantize.formats.packed import PackedFormat
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.tokenizer.chat_templates import templates_of
from quantize.gguf.tokenizer.metadata import tokenizer_metadata
from quantize.gguf.tokenizer.special import gguf_name
from quantize.hf.names import IGNORED
from quantize.hf.needed import needed
from quantize.inspection.findings import Findings
from quantize.inspection.headers import settings, tokenizers
from quantize.inspection.likeness import Likeness, Packed
from quantize.inspection.problems import EMBEDDING, Problem
from quantize.inspection.reading import HEAD_WEIGHT, Reading, packed_of
from quantize.inspection.scales import scale_faults, zero_point_faults
from quantize.inspection.sides import Side
from quantize.numerics.faults import nearer_to
from quantize.terminal import printable

TWICE = "tied head quantized twice"
ROPE = "rope differs from the source's"
TEMPLATE = "chat template differs from the source's"
SPLITS = "tokenizer splits otherwise than the source's"
#: what llama.cpp takes where a file says nothing
DEFAULTS: dict[str, Any] = {"rope.freq_base": 10000.0, "rope.scaling.type": "none"}
#: scales that are one number for a whole tensor
WHOLE = ("weight_global_scale", "weight_scale_2", "weight_scale", "weight_scale_inv")
#: a head is of the quantized embedding where it is this many times nearer to it than to the source's
TWICE_NEARER = 0.5

Add = Callable[[str, np.ndarray], None]


@dataclass
class Weights:
    """``extra``: read, but no tensors of ``Reading.base``; ``unreadable``: why the reader gave up."""

    problems: list[Problem] = field(default_factory=list)
    extra: set[str] = field(default_factory=set)
    unreadable: str = ""


def weight_problems(reading: Reading, source: Checkpoint | None, keep: Add) -> Weights:
    """One pass over the weights; ``keep`` gets each by its name. Without ``source`` only what the stored
    numbers say of themselves."""
    findings, found = Findings(), Weights()
    if reading.gguf is None:
        scale_faults(reading.stage, findings)
        if isinstance(reading.format, PackedFormat):
            zero_point_faults(reading.stage, reading.format, findings)
    for name, why in reading.odd:
        findings.add("tensors are not its source's", name, why)
    likeness = _likeness(reading, source, findings) if source is not None else None
    head = _TiedHead(source)
    try:
        for name, values in reading.stream():
            keep(name, values)
            if name not in reading.base.tensors:
                found.extra.add(name)
            if likeness is not None:
                likeness.add(name, values)
                head.add(name, values)
            elif not np.isfinite(values.sum(dtype=np.float64)) and name not in findings.about:
                findings.add("values that are NaN or Inf", name, "weights are finite numbers")
    except (QuantwrightError, ValueError, KeyError, IndexError) as error:
        found.unreadable = printable(error, 300)
        if not findings.about:
            findings.add("cannot be read", reading.storage, found.unreadable)
    if likeness is not None and source is not None and not found.unreadable:
        likeness.finish(name for name in _expected(source, reading) if not name.endswith(IGNORED))
        head.judge(findings)
    found.problems = list(findings.problems())
    return found


def _expected(source: Checkpoint, reading: Reading) -> Iterator[str]:
    if reading.family is not None:
        mapped = {name for each in reading.family.tensors for name in each.sources}
        yield from (name for name in reading.base.tensors if name in mapped)
        return
    try:
        whole = needed(source)[0]
    except QuantwrightError:
        whole = source
    # a tied head is its embedding's, whatever the source stores of it
    yield from (name for name in whole.tensors if name != HEAD_WEIGHT or name in reading.base.tensors)


def _likeness(reading: Reading, source: Checkpoint, findings: Findings) -> Likeness:
    stored = None if reading.gguf else StoredTensors(reading.stage)

    def said(name: str) -> str:
        base = name.removesuffix(".weight")
        for ending in WHOLE if stored is not None else ():
            if f"{base}.{ending}" in stored and stored.info[f"{base}.{ending}"].parameters == 1:  # type: ignore[operator, union-attr]
                value = float(stored.float32(f"{base}.{ending}").reshape(-1)[0])  # type: ignore[union-attr]
                divides = "the format divides by it" if "global" in ending else "the format multiplies by it"
                return f"its {ending} is {value:.4g}, and {divides}"
        return "scales are inverted, or of another tensor"

    packed: Callable[[str], Packed | None] = packed_of(reading)  # type: ignore[assignment]
    return Likeness(source, findings, moved=reading.format.moves_scales, packed=packed, stored_scale=said)


class _TiedHead:
    """Of a source whose head is its embedding: whether a head that is stored apart was made of it, or of the
    quantized embedding."""

    def __init__(self, source: Checkpoint | None):
        self._source = source
        config = source.config if source is not None else {}
        text = config.get("text_config")
        inner: Mapping[str, Any] = text if isinstance(text, dict) and text else config
        untied = inner.get("tie_word_embeddings", config.get("tie_word_embeddings")) is False
        names = list(source.tensors) if source is not None else []
        self._name = next((n for n in names if n.endswith(EMBEDDING)), "")
        self._tied = bool(self._name) and not untied and HEAD_WEIGHT not in names
        self._embedding: np.ndarray | None = None
        self._head: np.ndarray | None = None

    def add(self, name: str, values: np.ndarray) -> None:
        if not self._tied or name not in (self._name, HEAD_WEIGHT):
            return
        if name == self._name:
            self._embedding = values
        else:
            self._head = values

    def judge(self, findings: Findings) -> None:
        if self._embedding is None or self._head is None or self._source is None:
            return
        source = self._source.read_float32(self._name)
        if source.shape != self._head.shape or np.array_equal(self._embedding, source):
            return
        if np.array_equal(self._head, self._embedding):
            findings.add(
                "tied head stored twice", HEAD_WEIGHT, f"the same numbers as {self._name}, to which its "
                "source ties it", "note",
            )  # fmt: skip
        elif nearer_to(self._head, self._embedding, source) < TWICE_NEARER:
            findings.add(
                TWICE, HEAD_WEIGHT, f"it is nearer to the quantized {self._name} than to the source's: it "
                "was quantized from that",
            )  # fmt: skip


def setting_problems(reading: Reading, source: Checkpoint) -> Iterator[Problem]:
    """Rope as the source has it: of a GGUF all that llama.cpp reads of it."""
    if reading.gguf is not None:
        if reading.family is not None:
            yield from _rope_metadata(reading.gguf, reading)
        return
    own = Side("", {}, config=reading.own.config if reading.own else {})
    for each in settings(own, Side("", {}, config=source.config)):
        if each.name.startswith("rope") and not _same(each.first, each.second):
            said = "nothing" if each.first is None else each.first
            yield Problem(
                "wrong", ROPE, f"config.json: {each.name} is {said}, its source's {each.second or 'nothing'}"
            )


def _rope_metadata(file: GgufFile, reading: Reading) -> Iterator[Problem]:
    family = reading.family
    assert family is not None
    found = str(file.kvs.get("general.architecture", ""))
    if found != family.architecture:
        yield Problem(
            "wrong", "another architecture", f"general.architecture is {printable(found, 60)}, "
            f"its source is {family.architecture} to llama.cpp",
        )  # fmt: skip
        return
    for name, (wanted, _) in family.kvs.items():
        short = name.removeprefix(f"{found}.")
        if not short.startswith("rope."):
            continue
        if isinstance(wanted, tuple):
            wanted = wanted[0]
        there = file.kvs.get(name, DEFAULTS.get(short))
        if there is None and short not in DEFAULTS and not short.startswith("rope.scaling"):
            continue  # llama.cpp derives it from the sizes of heads
        if not _same(there, wanted):
            yield Problem(
                "wrong", ROPE, f"{name} is {printable(there, 80)}, its source's {printable(wanted, 80)}"
            )
    kind = file.kvs.get(f"{found}.rope.scaling.type", "none")
    if kind != "none" and f"{found}.rope.scaling.type" not in family.kvs:
        yield Problem(
            "wrong", ROPE, f"{found}.rope.scaling.type is {printable(kind, 40)}, its source scales nothing"
        )
    for mapped in family.tensors:
        if mapped.sources or not mapped.name.startswith("rope_"):
            continue
        if mapped.name not in file.tensors:
            yield Problem("wrong", ROPE, f"{mapped.name} is missing: its source's frequencies are scaled")
        elif not np.allclose(file.dequantize(mapped.name), mapped.build([]), rtol=1e-5, atol=0):
            yield Problem("wrong", ROPE, f"{mapped.name} does not hold its source's factors")


def _same(one: Any, other: Any) -> bool:
    """As numbers, where both are: a GGUF holds float32."""
    try:
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-6, atol=0))
    except (TypeError, ValueError):
        return bool(one == other)


def template_problems(reading: Reading, source: Checkpoint) -> Iterator[Problem]:
    wanted = folder_templates(source.folder)
    if reading.gguf is not None:
        wanted = {gguf_name(name): text for name, text in wanted.items()}
        found = templates_of(reading.gguf.kvs)
    else:
        found = folder_templates(reading.stage)
    if found == wanted:
        return
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    name = printable(names[0] or "default", 60)
    if names[0] not in found:
        yield Problem("wrong", "no chat template", f"{name}: its source has one")
    else:
        had = "is another text than its source's" if names[0] in wanted else "its source has none"
        yield Problem("wrong" if names[0] in wanted else "note", TEMPLATE, f"{name}: {had}")


def vocabulary_problems(file: GgufFile, source: Checkpoint) -> Iterator[Problem]:
    """Whether a token of a GGUF stands where its source has another: texts alone tell of common words."""
    found = file.kvs.get("tokenizer.ggml.tokens")
    try:
        wanted = tokenizer_metadata(source).kvs["tokenizer.ggml.tokens"][0]
    except (QuantwrightError, KeyError):
        return
    if not isinstance(found, list):
        return
    places = {token: number for number, token in enumerate(wanted)}
    moved = [
        (number, token)
        for number, (token, own) in enumerate(zip(found, wanted, strict=False))
        if token != own and token in places
    ]
    if moved:
        number, token = moved[0]
        more = f" (and {len(moved) - 1:,} more)" if len(moved) > 1 else ""
        yield Problem(
            "wrong", SPLITS, f"token {number} is {printable(repr(token), 60)}, which is {places[token]} in "
            f"its source{more}: the vocabulary is in another order",
        )  # fmt: skip


def tokenizer_problems(folder: Path, source: Checkpoint) -> Iterator[Problem]:
    """Of a Hugging Face folder; a GGUF's is asked in llama.cpp."""
    found = tokenizers(Side("", {}, folder=folder), Side("", {}, folder=source.folder))
    if found.why_not:
        yield Problem("note", "tokenizer", f"not compared: {found.why_not}")
    elif found.differ or found.ids[0] != found.ids[1]:
        many = f"{found.differ:,} of {found.texts:,} texts differ"
        ids = f"{found.ids[0]} and {found.ids[1]} ids" if found.ids[0] != found.ids[1] else ""
        yield Problem("wrong", SPLITS, "; ".join(filter(None, (many, found.example, ids))))
