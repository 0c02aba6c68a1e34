"""A GGUF's hyperparameters, each checked as it is read."""

from typing import Any

import numpy as np

from quantize.errors import BadInput
from quantize.gguf.container.reader import GgufFile
from quantize.terminal import printable

MOST = 2**31 - 1  # of any size: what configs and llama.cpp count in
MOST_HEAD = 1 << 16
LARGEST_FLOAT = float(np.finfo(np.float32).max)


class Metadata:
    """Hyperparameters of one GGUF by their names without ``{arch}.``."""

    def __init__(self, file: GgufFile):
        self.file = file
        self.architecture = str(file.kvs.get("general.architecture", ""))

    def find(self, key: str) -> Any:
        return self.file.kvs.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: float | None = None) -> float:
        """A float32 in llama.cpp. Errors: BadInput where the key is missing without a default, or is not
        one positive number of that range."""
        value = self._one(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= LARGEST_FLOAT:
            raise self.wrong(key, value, "one positive number that a float32 holds")
        return value

    def integer(self, key: str, default: int | None = None, most: int = MOST) -> int:
        """Errors: BadInput where the key is missing without a default, or is not an integer from 1 to
        ``most``."""
        value = self._one(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise self.wrong(key, value, f"an integer from 1 to {most}")
        return value

    def largest(self, key: str, default: int | None = None, most: int = MOST) -> int:
        """Of one integer, or of one per layer, of which those of layers without it are zero. Errors: as of
        ``integer``."""
        value = self.find(key)
        if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
            value = max(value)
            if not 0 < value <= most:
                raise self.wrong(key, value, f"integers to {most}, one of them more than 0")
            return int(value)
        return self.integer(key, default, most)

    @property
    def ahead(self) -> int:
        """How many of the layers predict further tokens; the last ones. Errors: BadInput where the file says
        something odd."""
        value, layers = self._one("nextn_predict_layers", 0), self.integer("block_count")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < layers:
            raise self.wrong("nextn_predict_layers", value, f"an integer from 0 to {layers - 1}")
        return value

    @property
    def layers(self) -> int:
        """Without those."""
        return self.integer("block_count", most=len(self.file.tensors)) - self.ahead

    def layers_with(self, tensor: str) -> list[bool]:
        """Of each layer, whether it has a ``tensor`` (its name without ``blk.N.``)."""
        return [self.has(f"blk.{layer}.{tensor}") for layer in range(self.layers)]

    def experts(self) -> int:
        """As many as the tensors hold. Errors: BadInput where the file says otherwise."""
        tensors = self.file.tensors
        stacked = next((tensors[name] for name in tensors if name.endswith(".ffn_down_exps.weight")), None)
        count = self.integer("expert_count")
        if stacked is None or stacked.shape[0] != count:
            there = stacked.shape[0] if stacked else "no"
            raise BadInput(
                f"{self.file.path}: {self.architecture}.expert_count "
                f"of {count}, but tensors of {there} experts"
            )
        return count

    def _one(self, key: str, default: float | None) -> Any:
        value = self.find(key)
        # one per layer, all equal
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            return value[0]
        return default if value is None else value

    def wrong(self, key: str, value: Any, expected: str) -> BadInput:
        found = "has none" if value is None else f"has {printable(value, 60)}"
        return BadInput(
            f"{self.file.path}: expected {expected} as "
            f"{printable(self.architecture, 60)}.{key}, the file {found}"
        )

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors


def exact(value: float) -> float:
    """The decimal number that a float32 was most likely written as (1e-06, not 9.999999974752427e-07)."""
    return float(str(np.float32(value)))
