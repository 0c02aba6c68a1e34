"""torchao: int8 weights rounded to nearest, without calibration, saved and reloadable; or while loading."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import field_validator

from quantize.calibration.windows import Calibration
from quantize.engines import torchao
from quantize.engines.base import Conversion, Engine
from quantize.errors import Unsupported
from quantize.formats.base import Format
from quantize.formats.torchao import TorchAoFormat
from quantize.hf.load import (
    compute_dtype,
    load_model,
    read_config,
    stored_dtype,
    torch_dtype,
    torchao_compute_in,
)
from quantize.hf.loaded import experts_kept, loaded
from quantize.methods.base import Costs, Held, Method, Work
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TorchAoRecipe(Recipe):
    """``group_size``: inputs that share a scale; -1 for whole rows."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"torchao-int8": {}}

    method: Literal["torchao"] = "torchao"
    group_size: int = -1

    @field_validator("group_size")
    @classmethod
    def _known(cls, value: int) -> int:
        if value not in (-1, 32, 64, 128):
            raise ValueError("should be -1, 32, 64 or 128")
        return value


class TorchAo(Method[TorchAoRecipe]):
    recipe_class: ClassVar[type[Recipe]] = TorchAoRecipe
    format: ClassVar[type[Format]] = TorchAoFormat
    engine: ClassVar[Engine] = torchao.TORCHAO
    costs: ClassVar[Costs] = Costs(
        start_s=15, seconds=0.1, base_bytes=560 << 20, stored_copies=2.8, reads_files=True
    )
    summary: ClassVar[str] = "torchao: int8 weights, no calibration; saved, or quantized while loading"
    text_only: ClassVar[bool] = False

    def work(self, held: Held, recipe: TorchAoRecipe) -> "TorchAoWork":
        torchao.check_version(self.engine.probe().versions["torchao"])
        checkpoint = held.checkpoint
        names = torchao.quantizable(checkpoint, recipe.group_size)
        if not names:
            raise Unsupported(
                f"{checkpoint.source}: {checkpoint.architecture} has no linear layers for torchao to "
                "quantize (its projections are another kind of layer, or their inputs no whole number of "
                "groups); GGUF recipes may work"
            )
        expected = frozenset(f"{name}.weight" for name in names)
        format = TorchAoFormat(recipe.group_size, loaded(checkpoint).beside())
        return TorchAoWork(held, recipe, format, expected)

    def open(
        self, folder: Path, dtype: str, device: str, exact: bool, trust_remote_code: bool
    ) -> "PreTrainedModel":
        model = load_model(folder, dtype, device, trust_remote_code=trust_remote_code)
        torchao_compute_in(model, torch_dtype(dtype))
        return model

    def load_as(self, folder: Path, recipe: TorchAoRecipe, run: RunOptions, exact: bool) -> "PreTrainedModel":
        torchao.check_version(self.engine.probe().versions["torchao"])
        stored = stored_dtype(read_config(folder))
        model = torchao.quantize_in_memory(folder, recipe.group_size, stored, run)
        torchao_compute_in(model, torch_dtype(compute_dtype(stored, run, exact)))
        return model


class TorchAoWork(Work[TorchAoRecipe]):
    def write(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        return torchao.write(self.checkpoint, stage, run, self.recipe.group_size)

    @property
    def chosen(self) -> str:
        return experts_kept(self.checkpoint, "torchao")
