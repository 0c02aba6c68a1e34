"""Tensors of a checkpoint that a GGUF holds as key-values: the parameters of Apertus' activation."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.safetensors_header import TensorInfo
from quantize.errors import BadInput
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.families.apertus import ACTIVATION, PARAMETERS

#: shapes that transformers gives them
SHAPES: dict[str, tuple[int, ...]] = {"alpha_n": (1,), "alpha_p": (1,), "beta": (), "eps": ()}


@dataclass(frozen=True)
class Keyed:
    """A reader of them."""

    values: dict[str, np.ndarray]

    def read(self, info: TensorInfo) -> np.ndarray:
        return self.values[info.name]

    def files(self, tensors: Iterable[TensorInfo]) -> list[tuple[str, Path]]:
        return []


def keyed_tensors(file: GgufFile, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """float32, by their names in the checkpoint; {} for other architectures.

    Errors: BadInput where the file has not one number for each layer.
    """
    if file.kvs.get("general.architecture") != "apertus":
        return {}
    layers, found = int(config["num_hidden_layers"]), {}
    for parameter in PARAMETERS:
        values = file.kvs.get(f"xielu.{parameter}")
        values = [values] * layers if isinstance(values, float) else values
        if (
            not isinstance(values, list)
            or len(values) != layers
            or not all(isinstance(value, float) for value in values)
        ):
            raise BadInput(f"{file.path}: expected {layers} numbers as xielu.{parameter}")
        for layer, value in enumerate(values):
            name = ACTIVATION.replace("{i}", str(layer)) + parameter
            found[name] = np.full(SHAPES[parameter], value, np.float32)
            found[name].flags.writeable = False
    return found
