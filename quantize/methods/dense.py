"""The checkpoint unquantized, in one dtype: the baseline that the others are compared with.

Streamed tensor by tensor from the source's files; no model is built, so any architecture passes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import FLOATS, STORED
from quantize.engines.base import Conversion
from quantize.errors import StepFailed
from quantize.methods.base import Method
from quantize.recipe import DenseRecipe, Recipe, RunOptions

FLOAT16_MAX = 65504.0


class Dense(Method):
    recipe_class: ClassVar[type[Recipe]] = DenseRecipe
    on_device: ClassVar[bool] = False
    summary: ClassVar[str] = "the unquantized checkpoint in one dtype: the baseline"
    loads_in: ClassVar[tuple[str, ...]] = ("transformers", "vllm", "sglang")

    def source(self, checkpoint: Checkpoint) -> tuple[Checkpoint, list[Note]]:
        """Every tensor of the files, whatever a model would take from them."""
        return checkpoint, []

    def check(self, checkpoint: Checkpoint, recipe: DenseRecipe) -> None:
        """Any checkpoint can be stored in another dtype."""

    def convert(
        self,
        checkpoint: Checkpoint,
        recipe: DenseRecipe,
        stage: Path,
        run: RunOptions,
        calibration: Calibration | None,
    ) -> Conversion:
        """Errors: StepFailed where a weight is NaN or Inf, or too large for float16."""
        from quantize.checkpoint.tensors import Entry, write_config, write_folder

        storage = STORED[recipe.dtype]
        notes: list[Note] = []
        entries = []
        for name, info in checkpoint.tensors.items():
            if info.dtype in FLOATS:
                entries.append(Entry(name, storage, info.shape))
            else:
                entries.append(Entry(name, info.dtype, info.shape))
                notes.append(
                    Note(tensor=name, what=f"kept as {info.dtype}", why="holds integers, not weights")
                )
        rounded = {info.dtype for info in checkpoint.tensors.values() if info.dtype in FLOATS} - {storage}
        if storage != "F32" and rounded:
            kinds = ", ".join(sorted(rounded))
            notes.append(
                Note(
                    tensor="*",
                    what=f"rounded from {kinds} to {storage}",
                    why=f"the recipe asks for {recipe.dtype}",
                )
            )

        def data(name: str) -> np.ndarray:
            if checkpoint.tensors[name].dtype not in FLOATS:
                return np.array(checkpoint.read(name))
            return _cast(checkpoint, name, recipe.dtype)

        weight_bytes = write_folder(stage, entries, data)
        config = {**checkpoint.config}
        config.pop("torch_dtype", None)
        config["dtype"] = recipe.dtype
        for part in ("text_config", "vision_config", "audio_config"):
            if isinstance(config.get(part), dict) and {"dtype", "torch_dtype"} & set(config[part]):
                inner = {key: value for key, value in config[part].items() if key != "torch_dtype"}
                config[part] = {**inner, "dtype": recipe.dtype}
        write_config(stage, config)
        return Conversion(weight_bytes, engine="quantwright", libraries=("torch",), notes=notes)

    def quantized(self, stage: Path, recipe: DenseRecipe) -> dict[str, str]:
        from quantize.checkpoint.tensors import StoredTensors

        return {name: info.dtype for name, info in StoredTensors(stage).info.items()}

    def expected(self, checkpoint: Checkpoint, recipe: DenseRecipe) -> set[str]:
        return {name for name, info in checkpoint.tensors.items() if info.dtype in FLOATS}

    def fits(self, recipe: DenseRecipe, kind: str) -> bool:
        return kind == STORED[recipe.dtype]

    def dequantize(
        self, stage: Path, recipe: DenseRecipe, checkpoint: Checkpoint
    ) -> Iterator[tuple[str, np.ndarray]]:
        from quantize.checkpoint.tensors import StoredTensors

        stored = StoredTensors(stage)
        for name in stored:
            yield name, stored.float32(name)


def _cast(checkpoint: Checkpoint, name: str, dtype: str) -> np.ndarray:
    """Bytes of one tensor in ``dtype``, rounded to nearest even."""
    import torch

    from quantize.checkpoint.tensors import torch_bytes

    tensor = checkpoint.read_torch(name)
    cast = tensor.to(getattr(torch, dtype))
    if dtype == "float16" and tensor.dtype != torch.float16 and not torch.isfinite(cast).all():
        largest = float(tensor.abs().max())
        raise StepFailed(
            f"{checkpoint.source}: tensor {name} holds values up to {largest:.4g}, but "
            f"float16's largest value is {FLOAT16_MAX:.0f}; use bfloat16 or float32"
        )
    return torch_bytes(cast)
