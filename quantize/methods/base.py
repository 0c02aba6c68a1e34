"""The interface of a method: a recipe, the format that it leaves on disk, the engine that makes it.

One file here and one line in ``quantize.methods.registry`` make a new one. Importing a method's file must be
cheap: torch and the engine's libraries are imported inside functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.entries import Entries
from quantize.engines.base import Conversion, Engine
from quantize.errors import BadInput, Unsupported
from quantize.formats.base import Format
from quantize.hf.load import load_model
from quantize.hf.needed import needed
from quantize.hf.refusals import check_config
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class Costs:
    """What a method's processes take, for a machine that has measured none yet.

    ``start_s`` and ``seconds``: of a conversion before any work, and for each million weights (one slow
    core to two fast ones; calibrated methods with 32,768 tokens). ``base_bytes``: of a converting process
    before any weight, engines loaded; ``bench_bytes`` and ``eval_bytes``: of one that opens an artifact,
    and of one that compares it with a reference. ``copies``: of the weights held at once, in float32;
    ``stored_copies``: or as they are stored, mapped files counted, where the engine only rounds.
    ``states``: hidden states of 32,768 tokens that are held at once, in float32, products of a layer too.
    ``saves_twice``: the engine saves what is then written again. ``reads_files``: its library reads
    weights from files, so that those of a GGUF, or with an adapter, are written for it.
    """

    start_s: float = 20.0
    seconds: float = 5.0
    base_bytes: int = 650 << 20
    bench_bytes: int = 500 << 20
    eval_bytes: int = 650 << 20
    copies: float = 1.5
    stored_copies: float | None = None
    states: float = 0.0
    saves_twice: bool = False
    reads_files: bool = False


@dataclass(frozen=True)
class Held:
    """What of a checkpoint (``whole``) an artifact holds, and a note for each tensor that it leaves out."""

    whole: Checkpoint
    checkpoint: Checkpoint
    left_out: tuple[Note, ...] = ()


class Work(ABC, Generic[R]):
    """What a recipe will do to a checkpoint, planned from headers: whoever has one knows that it can be done.

    ``format`` is that of the artifact; ``expected`` are the HF names of the tensors that the recipe means to
    quantize (those the notes name may be missing from ``quantized``).
    """

    def __init__(self, held: Held, recipe: R, format: Format, expected: frozenset[str]):
        self.held, self.recipe, self.format, self.expected = held, recipe, format, expected

    @property
    def checkpoint(self) -> Checkpoint:
        return self.held.checkpoint

    @cached_property
    def output_bytes(self) -> int | None:
        """Bytes of the artifact's files, the manifest left out; None where that is not known before."""
        return self.format.output_bytes(self.checkpoint, self.expected)

    @property
    def chosen(self) -> str:
        """What the recipe leaves open and the checkpoint decides, for a plan; empty where that is nothing."""
        return ""

    @property
    def calibrated(self) -> bool:
        """Whether ``write`` needs a calibration text."""
        return bool(self.recipe.calibrated)

    @property
    def value_rounding(self) -> float | None:
        """As of its format: the part of a value that storing takes, where each value is its source's."""
        return self.format.value_rounding

    @property
    def engine(self) -> str:
        """Which engine makes the bytes, and of which version, where the recipe and versions of packages do
        not tell; part of a step's key."""
        return ""

    @abstractmethod
    def write(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        """Write the artifact's files into ``stage`` and nowhere else."""

    @property
    def reading(self) -> Hashable | None:
        """Equal for works on one checkpoint that ``write_together`` makes from a single reading of it; None:
        this one reads for itself."""
        return None

    @classmethod
    def write_together(
        cls, works: Sequence[Any], stages: Sequence[Path], run: RunOptions
    ) -> list[Conversion | Exception]:
        """``write`` of works with an equal ``reading``, each into its own stage: the same bytes. What is
        wrong with one stands in its place; errors of reading are raised."""
        raise NotImplementedError(f"{cls.__name__} says that it reads for itself")

    def quantized(self, stage: Path) -> dict[str, str]:
        """Tensors that are quantized in the files under ``stage``: HF (source) name -> storage type."""
        return self.format.quantized(stage)

    def read(self, stage: Path) -> Iterator[tuple[str, np.ndarray]]:
        """(HF name, float32 array of the source's shape) for every weight of the source, by the second
        reader."""
        return self.format.dequantize(stage, self.checkpoint)

    def read_by_entry(self, stage: Path) -> Iterator[tuple[str, np.ndarray | Entries]]:
        """The same; what holds a layer's experts may come one expert's matrix at a time."""
        return self.read(stage)


class Method(ABC, Generic[R]):
    recipe_class: ClassVar[type[Recipe]]
    format: ClassVar[type[Format]]
    engine: ClassVar[Engine]
    #: one line for `quantwright methods`
    summary: ClassVar[str]
    #: whether it takes a model of text alone
    text_only: ClassVar[bool] = True
    costs: ClassVar[Costs] = Costs()

    def plan(self, checkpoint: Checkpoint, recipe: R) -> Work[R]:
        """Look at headers only. Errors: Unsupported, BadInput with the reason, where the combination cannot
        be made."""
        if (
            self.text_only
            and "num_hidden_layers" not in checkpoint.config
            and "text_config" in checkpoint.config
        ):
            raise Unsupported(
                f"{checkpoint.source}: {checkpoint.architecture} is a multimodal model; "
                "only its text model can be quantized: save that separately first"
            )
        if self.format.hf_folder:
            check_config(checkpoint)
        return self.work(self.held(checkpoint), recipe)

    def held(self, checkpoint: Checkpoint) -> Held:
        """An HF folder is loaded by libraries that compute buffers and tie heads by themselves; a stored copy
        of either is left out."""
        if not self.format.hf_folder:
            return Held(checkpoint, checkpoint)
        kept, notes = needed(checkpoint)
        return Held(checkpoint, kept, notes)

    def costs_of(self, recipe: Recipe) -> Costs:
        """Of one of its recipes, where they differ: by the engine, say."""
        return self.costs

    def environment(self, recipe: Recipe) -> str:
        """The engine in an environment of its own that one of its recipes needs; empty where none is."""
        return ""

    @abstractmethod
    def work(self, held: Held, recipe: R) -> Work[R]:
        """The method's own part of ``plan``."""

    def open(
        self, folder: Path, dtype: str, device: str, exact: bool, trust_remote_code: bool
    ) -> "PreTrainedModel":
        """The artifact in ``folder``, computing in ``dtype``: by transformers' own loader, unless said."""
        return load_model(folder, dtype, device, trust_remote_code=trust_remote_code)

    def load_as(self, folder: Path, recipe: R, run: RunOptions, exact: bool) -> "PreTrainedModel":
        """The plain checkpoint ``folder`` as ``recipe`` would quantize it, ready to run; nothing is saved.
        ``exact`` asks for the most exact arithmetic. Errors: BadInput where the recipe needs a conversion."""
        raise BadInput(
            f"{recipe.short}: only quanto, bnb and torchao recipes can be quantized while loading; "
            "convert it first"
        )
