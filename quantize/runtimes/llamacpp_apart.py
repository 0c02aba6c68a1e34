"""llama.cpp in a process of its own, with the interface of ``quantize.kernels.llamacpp``'s ``Model`` and
``Context``.

llama.cpp asserts many properties of a file, and a failed assertion ends its process: here that is a child,
whose death is one error about one file. Starting it takes 0.15 s, during which the header is read; logits are
copied once, into memory that both map.
"""

import mmap
import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import numpy as np

from quantize import errors
from quantize.process import child_command, child_environment
from quantize.terminal import printable

_TELLING = re.compile(r"GGML_ASSERT|GGML_ABORT|what\(\)|[Aa]ssertion|error|failed|fatal")


class Model:
    """A GGUF file in its own llama.cpp process. Close it, or use the runtime's context manager.

    Made in two steps, so that the child starts while the caller reads the header: ``Model(path)``, then
    ``open``.
    """

    vocabulary: int
    trained_context: int
    recurrent: bool
    size_bytes: int
    gpu: bool
    special_tokens: dict[str, int | None]

    def __init__(self, path: Path):
        self.path = path
        ours, theirs = socket.socketpair()
        self._memory_file: IO[bytes] = _shared_file()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        with theirs:
            kept = (theirs.fileno(), self._memory_file.fileno())
            self._process = subprocess.Popen(
                child_command("quantize.runtimes.llamacpp_child", *map(str, kept)),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=kept,
                env=child_environment(GGML_NO_BACKTRACE="1"),
            )
        self._connection = Connection(ours.detach())
        self.logits: np.ndarray = np.empty(0, np.float32)  # what the child wrote last
        self.alive = True

    def open(self, device: str) -> None:
        """Errors: BadInput where llama.cpp refuses the file; StepFailed where it ends over it."""
        opened = self.ask("open", str(self.path), device)
        self._describe: dict[str, str] = opened.pop("describe")
        for name, value in opened.items():
            setattr(self, name, value)

    def describe(self) -> dict[str, str]:
        return self._describe

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """As ``llamacpp.Model.tokenize``."""
        ids: list[int] = self.ask("tokenize", text, add_special)
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """As ``llamacpp.Model.detokenize``."""
        return str(self.ask("detokenize", list(ids)))

    def context(self, length: int, **settings: Any) -> "Context":
        """As ``llamacpp.Model.context``."""
        number, size = self.ask("context", {"length": length, **settings})
        if size > self.logits.nbytes:
            mapped = mmap.mmap(self._memory_file.fileno(), size, prot=mmap.PROT_READ)
            self.logits = np.frombuffer(mapped, np.float32)
        return Context(self, number, length, settings)

    def ask(self, request: str, *arguments: Any) -> Any:
        """Errors: those of the request; StepFailed where the child died of it."""
        try:
            self._connection.send((request, arguments))
            kind, *reply = self._connection.recv()
        except (EOFError, OSError):
            raise self._ended(request) from None
        except BaseException:  # Ctrl-C: the child may compute for minutes yet
            self.close()
            raise
        if kind == "done":
            return reply[0]
        if kind == "ImportError":
            raise ImportError(reply[0])
        if kind == "bug":
            raise RuntimeError(reply[0])
        raise getattr(errors, kind)(reply[0])

    def _ended(self, request: str) -> errors.StepFailed:
        self.alive = False
        code = self._process.wait()
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        doing = {"open": "opening", "tokenize": "tokenizing with", "detokenize": "spelling tokens of"}.get(
            request, "running"
        )
        hint = (
            "the system ran out of memory, or someone killed it"
            if code == -signal.SIGKILL
            else self._last_words()
        )
        return errors.StepFailed(f"llama.cpp ended with {how} while {doing} {self.path}: {hint}")

    def _last_words(self) -> str:
        self._log.seek(max(0, os.fstat(self._log.fileno()).st_size - 65536))
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if _TELLING.search(line)] or lines
        # an assertion begins with the path at which the library was built
        return (
            printable(re.sub(r"^\S*/vendor/", "", telling[-1].strip()), 400)
            if telling
            else "it logged nothing"
        )

    def close(self) -> None:
        """At once: there is nothing that the child would have to put away."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        for file in (self._connection, self._memory_file, self._log):
            file.close()


class Context:
    """As ``llamacpp.Context``."""

    def __init__(self, model: Model, number: int, length: int, settings: dict[str, Any]):
        self._model, self._number, self.length = model, number, length
        self.sequences: int = settings["sequences"]
        self.batch_size: int = settings["batch"]
        self.outputs: int = settings["outputs"]

    def clear(self) -> None:
        self._model.ask("clear", self._number)

    def decode(
        self,
        tokens: np.ndarray,
        positions: np.ndarray,
        sequences: Sequence[Sequence[int]] | np.ndarray,
        wanted: np.ndarray,
    ) -> np.ndarray:
        """As ``llamacpp.Context.decode``; the array is valid until the next call of any context of the
        model."""
        rows = self._model.ask("decode", self._number, tokens, positions, sequences, wanted)
        logits: np.ndarray = self._model.logits[: rows * self._model.vocabulary]
        return logits.reshape(rows, self._model.vocabulary)

    def close(self) -> None:
        if self._model.alive:
            self._model.ask("drop", self._number)


def _shared_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("quantwright-logits"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
