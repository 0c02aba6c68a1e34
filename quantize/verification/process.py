"""A fresh process opens the artifact, without what the converting one has imported and replaced.

An engine may replace classes of the runtime (GPTQModel does: experts by unfused ones), and an artifact that
opens only with them opens nowhere else. Paths go in and come back, not tensors.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quantize import errors
from quantize.errors import QuantwrightError, StepFailed
from quantize.process import child_command, child_environment
from quantize.recipe import RunOptions
from quantize.runtimes.base import Consume
from quantize.verification.named_runtimes import open_named
from quantize.verification.served import served

#: runs ``main`` on a folder in a process that has imported none of our engines; returns how that failed
Start = Callable[[Path], str]


def new_process(folder: Path, seconds: float | None = None) -> str:
    """``seconds``: after which it is ended, and what it has begun with it."""
    command = child_command("quantize.verification.process", str(folder))
    try:
        done = subprocess.run(
            command,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {seconds:g} s"
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return f"failed: {(lines or ['no word'])[-1][:300]}"


class KeptProcess:
    """``Start``: one process for several folders, one after the other, which imports its libraries once. For
    artifacts that the same library opens: another's may meet what the first has replaced. Where it ends, or
    fails with anything that is no answer, the folder gets a process of its own, whose word counts."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, folder: Path) -> str:
        if self._process is None:
            self._process = subprocess.Popen(
                child_command("quantize.verification.process"),
                env=child_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            print(folder, file=self._process.stdin, flush=True)
            if self._process.stdout.readline():
                return ""
        self.close()
        return new_process(folder)

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.communicate()
            self._process = None


def within(seconds: float) -> Start:
    return partial(new_process, seconds=seconds)


class Opened:
    """What a separate process found at ``stage``: ``about`` the runtime, names that it had no place for,
    logits of ``rows`` (n, length), kept in ``folder``. Without rows it only opens. ``exact``: in float32, by
    slower kernels where the format has them. ``more``: what else is asked, as ``served`` and ``open_named``
    read it; ``answer``: all that was found.

    Errors: those of opening it; StepFailed where the process dies.
    """

    def __init__(
        self,
        stage: Path,
        run: RunOptions,
        rows: np.ndarray | None,
        folder: Path,
        *,
        exact: bool = True,
        start: Start = new_process,
        more: Mapping[str, Any] | None = None,
    ):
        self.folder = folder
        request = {
            "stage": str(stage.absolute()),
            "run": run.model_dump(mode="json"),
            "folder": str(folder),
            "exact": exact,
            **(more or {}),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        if rows is not None:
            np.save(folder / "rows.npy", rows)
        how = start(folder)
        answer = folder / "answer.json"
        if not answer.is_file():
            raise StepFailed(f"the process that opened it {how}")
        found = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in found:
            raise getattr(errors, found["kind"])(found["error"])
        self.answer: dict[str, Any] = found
        self.about: dict[str, Any] = found["about"]
        self.unexpected: list[str] = found["unexpected"]
        self.vocabulary = int(found["vocabulary"])

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        """Of the rows that it was opened with, from their first position."""
        kept = np.memmap(self.folder / "logits.f32", np.float32, "r").reshape(*rows.shape, self.vocabulary)
        for row, logits in enumerate(kept):
            consume(row, first, logits[first:])


def main(folder: Path) -> None:
    """The child's part."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    rows = np.load(folder / "rows.npy") if (folder / "rows.npy").is_file() else None
    try:
        with open_named(request) as runtime:
            answer = {
                **served(runtime, request, rows, folder),
                "about": runtime.describe(),
                "unexpected": list(getattr(getattr(runtime, "model", None), "unexpected", ())),
                "vocabulary": runtime.vocabulary,
            }
    except QuantwrightError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    except ImportError as error:
        answer = {"error": f"not installed here: {errors.first_line(error)}", "kind": "Unsupported"}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def serve() -> None:
    """The child's part of ``KeptProcess``: a folder a line in, a line for each that is answered."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        main(Path(line.rstrip("\n")))
        print("answered", file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        serve()
