"""optimum-quanto: weights rounded to nearest, without calibration, saved and reloadable; or while loading."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from quantize.calibration.windows import Calibration
from quantize.engines import quanto
from quantize.engines.base import Conversion, Engine
from quantize.errors import Unsupported
from quantize.formats.base import Format
from quantize.formats.quanto import QuantoFormat
from quantize.hf.load import compute_dtype, load_quanto, read_config, stored_dtype, torch_dtype
from quantize.hf.loaded import experts_kept, loaded
from quantize.methods.base import Costs, Held, Method, Work
from quantize.quiet import quiet
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class QuantoRecipe(Recipe):
    """``lm_head``: quantize the output layer too (a tied one then stops being tied and is stored a second
    time)."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        f"quanto-{w}": {"weights": w} for w in ("int8", "int4", "int2", "float8")
    }

    method: Literal["quanto"] = "quanto"
    weights: Literal["int8", "int4", "int2", "float8"] = "int8"
    lm_head: bool = False


class Quanto(Method[QuantoRecipe]):
    recipe_class: ClassVar[type[Recipe]] = QuantoRecipe
    format: ClassVar[type[Format]] = QuantoFormat
    engine: ClassVar[Engine] = quanto.QUANTO
    costs: ClassVar[Costs] = Costs(
        start_s=15, seconds=0.1, base_bytes=560 << 20, stored_copies=2.8, reads_files=True
    )
    summary: ClassVar[str] = (
        "optimum-quanto: rounded to nearest, no calibration; saved and reloadable, or quantized while loading"
    )
    text_only: ClassVar[bool] = False

    def work(self, held: Held, recipe: QuantoRecipe) -> "QuantoWork":
        checkpoint = held.checkpoint
        expected = quanto.quantizable(checkpoint, recipe.weights, recipe.lm_head)
        if not expected:
            raise Unsupported(
                f"{checkpoint.source}: {checkpoint.architecture} has no linear "
                "layers for optimum-quanto to quantize (its projections are another "
                "kind of layer, or of a shape it cannot pack); GGUF recipes may work"
            )
        format = QuantoFormat(recipe.weights, loaded(checkpoint).beside())
        return QuantoWork(held, recipe, format, expected)

    def open(
        self, folder: Path, dtype: str, device: str, exact: bool, trust_remote_code: bool
    ) -> "PreTrainedModel":
        return load_quanto(folder, dtype, device, trust_remote_code=trust_remote_code)

    def load_as(self, folder: Path, recipe: QuantoRecipe, run: RunOptions, exact: bool) -> "PreTrainedModel":
        stored = stored_dtype(read_config(folder))
        model = quanto.quantize_in_memory(folder, recipe.weights, recipe.lm_head, stored, run)
        with quiet():
            quanto.compute_in(model, torch_dtype(compute_dtype(stored, run, exact)))
        return model


class QuantoWork(Work[QuantoRecipe]):
    def write(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        return quanto.write(self.checkpoint, stage, run, self.recipe.weights, self.recipe.lm_head)

    @property
    def chosen(self) -> str:
        return experts_kept(self.checkpoint, "optimum-quanto")
