"""``python -m quantize.runtimes.llamacpp_child CONNECTION MEMORY``: runs llama.cpp for
``quantize.runtimes.llamacpp_apart``.

Requests and replies are small and go through the socket CONNECTION; logits go through MEMORY, a file that
both map. llama.cpp's log also goes to stderr, so that its last lines are known if it aborts.
"""

import mmap
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from quantize.errors import QuantwrightError
from quantize.kernels import llamacpp


class Server:
    """One model. Each public method answers the request of its name."""

    def __init__(self, memory: int):
        self._file = memory
        self._memory: np.ndarray = np.empty(0, np.float32)
        self._contexts: dict[int, llamacpp.Context] = {}

    def open(self, path: str, device: str) -> dict[str, Any]:
        self._model = llamacpp.Model(Path(path), device=device)
        names = ("vocabulary", "trained_context", "recurrent", "size_bytes", "gpu", "special_tokens")
        return {**{name: getattr(self._model, name) for name in names}, "describe": self._model.describe()}

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return self._model.tokenize(text, add_special)

    def detokenize(self, ids: list[int]) -> str:
        return self._model.detokenize(ids)

    def context(self, settings: dict[str, Any]) -> tuple[int, int]:
        """-> (its number, bytes that the memory has now)."""
        made = self._model.context(**settings)
        self._contexts[id(made)] = made
        needed = 4 * made.outputs * self._model.vocabulary
        if needed > self._memory.nbytes:
            os.ftruncate(self._file, needed)
            self._memory = np.frombuffer(mmap.mmap(self._file, needed), np.float32)
        return id(made), self._memory.nbytes

    def clear(self, number: int) -> None:
        self._contexts[number].clear()

    def decode(self, number: int, *arguments: Any) -> int:
        """-> how many rows of logits lie in the memory."""
        logits = self._contexts[number].decode(*arguments)
        np.copyto(self._memory[: logits.size].reshape(logits.shape), logits)
        return len(logits)

    def drop(self, number: int) -> None:
        self._contexts.pop(number).close()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    connection, server = Connection(int(sys.argv[1])), Server(int(sys.argv[2]))
    llamacpp.echo_log(sys.stderr.fileno())
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            reply: tuple[Any, ...] = ("done", getattr(server, name)(*arguments))
        except QuantwrightError as error:
            reply = (type(error).__name__, str(error))
        except ImportError as error:
            reply = ("ImportError", str(error))
        except Exception:
            reply = ("bug", traceback.format_exc())
        connection.send(reply)


if __name__ == "__main__":
    main()
