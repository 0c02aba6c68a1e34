"""The interface of a method. One file here and one line in ``quantize.methods.registry`` make a new one.

Importing a method's file must be cheap: torch and the method's engine are imported inside functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.artifact.artifact import Note
from quantize.calibration.windows import Calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.engines.base import Conversion
from quantize.recipe import Recipe, RunOptions


class Method(ABC):
    recipe_class: ClassVar[type[Recipe]]
    #: one line for `quantwright methods`
    summary: ClassVar[str]
    #: (distribution, module to look for) that must be installed
    needs: ClassVar[tuple[tuple[str, str], ...]] = ()
    #: extra of this project that installs ``needs``
    extra: ClassVar[str] = ""
    #: runtime that serves the artifact: a name in ``quantize.runtimes.opening.RUNTIMES``
    runtime: ClassVar[str] = "transformers"
    #: programs known to load the artifact, for manifest and card
    loads_in: ClassVar[tuple[str, ...]] = ("transformers",)
    #: whether the artifact is an HF folder, which gets the source's tokenizer and generation config copied in
    hf_folder: ClassVar[bool] = True
    #: whether the conversion itself runs on ``--device`` (and so may depend on it), rather than on the CPU
    #: always
    on_device: ClassVar[bool] = True

    def source(self, checkpoint: Checkpoint) -> tuple[Checkpoint, list[Note]]:
        """What of the checkpoint the artifact holds, and a note for each tensor that it leaves out.

        An HF folder is loaded by libraries that compute buffers and tie heads by themselves; a stored copy of
        either is left out.
        """
        if not self.hf_folder:
            return checkpoint, []
        from quantize.hf.names import needed

        return needed(checkpoint)

    @abstractmethod
    def check(self, checkpoint: Checkpoint, recipe: Any) -> None:
        """Look at headers only. Errors: Unsupported with the reason, where the combination cannot be made."""

    @abstractmethod
    def convert(
        self,
        checkpoint: Checkpoint,
        recipe: Any,
        stage: Path,
        run: RunOptions,
        calibration: Calibration | None,
    ) -> Conversion:
        """Write the artifact's files into ``stage`` and nowhere else."""

    @abstractmethod
    def quantized(self, stage: Path, recipe: Any) -> dict[str, str]:
        """Tensors that are quantized in the files under ``stage``: HF (source) name -> storage type, read
        from the file."""

    @abstractmethod
    def expected(self, checkpoint: Checkpoint, recipe: Any) -> set[str]:
        """HF names of the tensors that the recipe means to quantize (those the notes name may be missing from
        ``quantized``)."""

    @abstractmethod
    def dequantize(
        self, stage: Path, recipe: Any, checkpoint: Checkpoint
    ) -> Iterator[tuple[str, np.ndarray]]:
        """(HF name, float32 array of the source's shape) for every weight of the source, read from the files
        under ``stage`` by a reader that shares no code with the engine that wrote them nor with the runtime
        that serves them."""
