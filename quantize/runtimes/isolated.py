"""What an engine in an environment of its own reads of a folder: its worker is asked for logits (task
``read``, docs/engines.md)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.calibration.windows import context_length
from quantize.checkpoint.library_folder import library_folder
from quantize.engines.isolated.call import Response, call
from quantize.engines.isolated.environment import needed
from quantize.engines.isolated.known import isolated_engine
from quantize.errors import Unsupported
from quantize.hf.load import read_config
from quantize.recipe import RunOptions
from quantize.runtimes.base import Consume, FolderRuntime
from quantize.staging import temporary_folder


class IsolatedRuntime(FolderRuntime):
    """Logits in float32, a fresh process each time; no cache, no speed. Errors: Unsupported where the engine
    is not installed."""

    name: ClassVar[str] = "isolated"

    def __init__(self, engine: str, folder: Path, run: RunOptions) -> None:
        self.folder, self._run = folder, run
        self._environment = needed(isolated_engine(engine), f"--in {engine}")
        config = read_config(folder)
        text = config.get("text_config") or config
        self.vocabulary = int(text.get("vocab_size") or 0)
        self.context = context_length(config) or 4096
        self._versions: dict[str, str] = {}

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        self.check_rows(rows)
        with temporary_folder("engine", self._run.scratch) as scratch:
            self._read(scratch, {"rows": rows.tolist(), "prompt": [], "tokens": 0})
            made = np.memmap(scratch / "made" / "logits.f32", np.float32, "r")
            for row, logits in enumerate(made.reshape(*rows.shape, self.vocabulary)):
                consume(row, first, logits[first:])

    def generate(self, ids: Sequence[int], tokens: int) -> list[int]:
        with temporary_folder("engine", self._run.scratch) as scratch:
            response = self._read(scratch, {"rows": [], "prompt": list(map(int, ids)), "tokens": tokens})
        return [int(token) for token in response.details["generated"]]

    def _read(self, scratch: Path, settings: dict[str, Any]) -> Response:
        """Errors: StepFailed with what the engine said."""
        made = scratch / "made"
        made.mkdir()
        with library_folder(self.folder, False, scratch=scratch, always=True) as safe:
            request = {
                "task": "read",
                "model": str(safe.absolute()),
                "stage": str(made.absolute()),
                "device": self._run.resolved_device,
                "calibration": [],
                "settings": settings,
            }
            response = call(self._environment, scratch.absolute(), request, self._run)
        self._versions = response.versions
        return response

    def start(self, ids: Sequence[int]) -> np.ndarray:
        raise Unsupported(f"{self._environment.engine.name} is asked for logits of whole rows only")

    def step(self, token: int) -> np.ndarray:
        raise Unsupported(f"{self._environment.engine.name} is asked for logits of whole rows only")

    def describe(self) -> dict[str, Any]:
        return {"backend": self._environment.engine.label, "versions": self._versions, "dtype": "float32"}

    def close(self) -> None:
        """Its processes have ended."""
