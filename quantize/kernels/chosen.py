"""Which block quantizer makes which type: the compiled kernels what they can, llama.cpp the rest."""

from collections.abc import Iterable

import numpy as np

from quantize.kernels import native
from quantize.kernels.base import BlockQuantizer
from quantize.kernels.block_types import Type
from quantize.kernels.ggml import GGML


def maker(kind: Type) -> BlockQuantizer:
    """Errors: BadInput as of ``native.load``."""
    library = native.load()
    if isinstance(library, str) or kind not in native.Native.kinds:
        return GGML
    return native.Native(library)


def made_by(kinds: Iterable[Type]) -> dict[str, str]:
    """For manifests: name of each type -> name and version of what quantizes it."""
    return {kind.name: f"{(by := maker(kind)).name} {by.version}" for kind in sorted(kinds)}


class Chosen(BlockQuantizer):
    name = "quantwright and llama.cpp"
    kinds = GGML.kinds

    @property
    def version(self) -> str:
        return "; ".join(sorted(set(made_by(self.kinds).values())))

    def prepare(self, kind: Type) -> None:
        maker(kind).prepare(kind)

    def quantize(
        self, kind: Type, rows: np.ndarray, out: np.ndarray, importance: np.ndarray | None = None
    ) -> None:
        maker(kind).quantize(kind, rows, out, importance)


CHOSEN = Chosen()
