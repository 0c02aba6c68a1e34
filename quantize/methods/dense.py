"""The checkpoint unquantized, in one dtype: the baseline that the others are compared with."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.entries import Entries
from quantize.dtypes import FLOATS
from quantize.engines.base import Conversion, Engine
from quantize.engines.native.dense import NATIVE, write_dense
from quantize.formats.base import Format
from quantize.formats.dense import DenseFormat
from quantize.gguf.families.multimodal import also_sees, is_other
from quantize.hf.load import load_model
from quantize.methods.base import Costs, Held, Method, Work
from quantize.recipe import DenseRecipe, Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Dense(Method[DenseRecipe]):
    recipe_class: ClassVar[type[Recipe]] = DenseRecipe
    format: ClassVar[type[Format]] = DenseFormat
    engine: ClassVar[Engine] = NATIVE
    costs: ClassVar[Costs] = Costs(start_s=6, seconds=0.05, base_bytes=90 << 20, stored_copies=0.0)
    summary: ClassVar[str] = "the unquantized checkpoint in one dtype: the baseline"
    text_only: ClassVar[bool] = False

    def held(self, checkpoint: Checkpoint) -> Held:
        """Every tensor of the files, whatever a model would take from them."""
        return Held(checkpoint, checkpoint)

    def work(self, held: Held, recipe: DenseRecipe) -> "DenseWork":
        """Any checkpoint can be stored in another dtype."""
        tensors = held.checkpoint.tensors.items()
        keeps = frozenset(name for name, _ in tensors if also_sees(held.checkpoint.config) and is_other(name))
        expected = frozenset(name for name, info in tensors if info.dtype in FLOATS and name not in keeps)
        return DenseWork(held, recipe, DenseFormat(recipe.dtype, keeps), expected)

    def load_as(self, folder: Path, recipe: DenseRecipe, run: RunOptions, exact: bool) -> "PreTrainedModel":
        trust = run.trust_remote_code
        return load_model(folder, recipe.dtype, run.resolved_device, trust_remote_code=trust)


class DenseWork(Work[DenseRecipe]):
    def read_by_entry(self, stage: Path) -> Iterator[tuple[str, np.ndarray | Entries]]:
        assert isinstance(self.format, DenseFormat)
        return self.format.by_entry(stage, self.checkpoint)

    def write(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        assert isinstance(self.format, DenseFormat)
        return write_dense(self.checkpoint, self.recipe.dtype, stage, self.format.keeps)
