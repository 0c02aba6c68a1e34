"""bitsandbytes through transformers: 8-bit rows or 4-bit blocks, no calibration, saved; or while loading."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from quantize.calibration.windows import Calibration
from quantize.engines import bitsandbytes
from quantize.engines.base import Conversion, Engine
from quantize.errors import Unsupported
from quantize.formats.base import Format
from quantize.formats.bitsandbytes import BnbFormat
from quantize.hf.load import (
    bitsandbytes_compute_in,
    compute_dtype,
    load_bitsandbytes,
    read_config,
    stored_dtype,
    torch_dtype,
)
from quantize.hf.loaded import experts_kept, loaded
from quantize.hf.names import empty_model, own_linear_layers
from quantize.methods.base import Costs, Held, Method, Work
from quantize.recipe import Recipe, RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BnbRecipe(Recipe):
    """``double_quant``: the 4-bit blocks' scales are themselves stored in 8 bits (0.37 bits a weight saved).
    ``threshold``: activations of int8 layers beyond it are multiplied in 16 bits; 0 multiplies all in 8.
    ``vision``: the linear layers beside the text model (towers, projectors) are quantized too."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        f"bnb-{w}": {"weights": w} for w in ("int8", "nf4", "fp4")
    }

    method: Literal["bnb"] = "bnb"
    weights: Literal["int8", "nf4", "fp4"] = "nf4"
    double_quant: bool = False
    threshold: float = Field(default=6.0, ge=0)
    vision: bool = False

    later: ClassVar[dict[str, Any]] = {"vision": False}

    @model_validator(mode="after")
    def _parameters_fit(self) -> "BnbRecipe":
        if self.weights == "int8" and self.double_quant:
            raise ValueError("double_quant belongs to nf4 and fp4; int8 has one scale per row")
        if self.weights != "int8" and self.threshold != 6.0:
            raise ValueError("threshold belongs to int8; nf4 and fp4 do not round activations")
        return self


class BitsAndBytes(Method[BnbRecipe]):
    recipe_class: ClassVar[type[Recipe]] = BnbRecipe
    format: ClassVar[type[Format]] = BnbFormat
    engine: ClassVar[Engine] = bitsandbytes.BITSANDBYTES
    costs: ClassVar[Costs] = Costs(
        start_s=15, seconds=0.1, base_bytes=560 << 20, stored_copies=1.8, reads_files=True
    )
    summary: ClassVar[str] = (
        "bitsandbytes: 8-bit rows or 4-bit blocks, no calibration; saved, or quantized while loading"
    )
    text_only: ClassVar[bool] = False

    def work(self, held: Held, recipe: BnbRecipe) -> "BnbWork":
        checkpoint = held.checkpoint
        found = loaded(checkpoint)
        layers = found.layers
        if found.experts() and _text_type(checkpoint.config).startswith("llama4"):
            raise Unsupported(
                f"{checkpoint.source}: transformers has other experts for Llama 4 when it opens a "
                "bitsandbytes folder, and finds no weights for them; GGUF and quanto recipes work"
            )
        if recipe.vision and not layers.linear_beside:
            raise Unsupported(
                f"{checkpoint.source}: {checkpoint.architecture} has no linear layers beside its text model; "
                "leave vision=true out"
            )
        linear = {**layers.linear, **(layers.linear_beside if recipe.vision else {})}
        own = own_linear_layers(empty_model(checkpoint, buffers=False))
        names = set(linear) - {layers.head} - layers.uses.direct - found.again - own
        if not names:
            raise Unsupported(
                f"{checkpoint.source}: {checkpoint.architecture} has no linear layers for bitsandbytes "
                "to quantize (its projections are another kind of layer); GGUF recipes may work"
            )
        if recipe.weights != "int8":
            odd = next((n for n in sorted(names) if linear[n][0] * linear[n][1] % 2), None)
            if odd:
                raise Unsupported(
                    f"{checkpoint.source}: {odd}.weight has an odd number "
                    "of weights, but two 4-bit weights share a byte"
                )
        expected = frozenset(f"{name}.weight" for name in names)
        format = BnbFormat(recipe.weights, recipe.double_quant, found.beside(expected))
        return BnbWork(held, recipe, format, expected)

    def open(
        self, folder: Path, dtype: str, device: str, exact: bool, trust_remote_code: bool
    ) -> "PreTrainedModel":
        return load_bitsandbytes(folder, dtype, device, exact, trust_remote_code=trust_remote_code)

    def load_as(self, folder: Path, recipe: BnbRecipe, run: RunOptions, exact: bool) -> "PreTrainedModel":
        stored = stored_dtype(read_config(folder))
        model = bitsandbytes.quantize_in_memory(folder, _settings(recipe), stored, run)
        bitsandbytes_compute_in(model, torch_dtype(compute_dtype(stored, run, exact)), exact)
        return model


class BnbWork(Work[BnbRecipe]):
    def write(self, stage: Path, run: RunOptions, calibration: Calibration | None) -> Conversion:
        return bitsandbytes.write(self.checkpoint, stage, run, _settings(self.recipe))

    @property
    def chosen(self) -> str:
        return experts_kept(self.checkpoint, "bitsandbytes")


def _text_type(config: dict[str, Any]) -> str:
    text = config.get("text_config")
    return str((text if isinstance(text, dict) else config).get("model_type", ""))


def _settings(recipe: BnbRecipe) -> bitsandbytes.Settings:
    return bitsandbytes.Settings(recipe.weights, recipe.double_quant, recipe.threshold, recipe.vision)
