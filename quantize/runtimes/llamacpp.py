"""GGUF files in llama.cpp: in a child (``quantize.runtimes.llamacpp_apart``) or in process
(``quantize.kernels.llamacpp``)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.reader import read_gguf
from quantize.kernels import llamacpp
from quantize.recipe import Recipe, RunOptions
from quantize.runtimes import llamacpp_apart
from quantize.runtimes.base import Consume, Runtime, TreeConsume
from quantize.runtimes.llamacpp_limits import check_metadata
from quantize.runtimes.llamacpp_tree import SEQUENCES, Context, Tree, run_packed

LOGITS_BYTES = 1 << 28  # of one call's logits; a vocabulary of 262k tokens has 1 MB a position
BATCH = 2048  # llama.cpp's default
PACKED = 512  # tokens of one call over short rows: llama.cpp's own physical batch
ATTENTION = {"eager": False, "flash": True}
DECODE_ROOM = 2048  # tokens that ``step`` may append by default


class LlamaCppRuntime(Runtime):
    """``exact``: F32 KV cache, flash attention off; otherwise llama.cpp's defaults. Quantized weights are
    multiplied by activations that llama.cpp rounds to 8 bits (F16 and BF16 weights: to F16 and BF16), exact
    or not: that is its arithmetic."""

    name = "llamacpp"

    def __init__(
        self,
        path: Path | str,
        run: RunOptions,
        *,
        load_as: Recipe | None = None,
        exact: bool = False,
        context: int = 0,
        own_process: bool = True,
    ) -> None:
        """``own_process``: llama.cpp runs in a child, and can end without ending this process.

        Errors: BadInput where the file is damaged or llama.cpp refuses it; StepFailed where it ended in
        opening it."""
        if load_as is not None:
            raise BadInput(
                f"{path}: a GGUF file cannot be loaded as {load_as.short}; give the original checkpoint"
            )
        path = Path(path)
        self.exact, self.threads = exact, run.resolved_threads
        self.model = _open_apart(path, run.device) if own_process else _open_here(path, run.device)
        self.gpu = self.model.gpu
        self.vocabulary = self.model.vocabulary
        self.context = context or self.model.trained_context
        self._given_context = context
        self._windows: Context | None = None
        self._stream: Context | None = None
        self._position = 0
        self._flash: bool | None = None

    @property
    def shares_beginnings(self) -> bool:
        """llama.cpp does not compute a token for several recurrent states."""
        return not self.model.recurrent

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        self.check_rows(rows)
        length = rows.shape[1]
        if len(rows) == 0 or length == 0:
            return
        most = max(16, LOGITS_BYTES // (4 * self.vocabulary))
        together = max(1, min(len(rows), BATCH // length, most // max(1, length - first)))
        batch = min(BATCH, length * together)
        context = self._windows_context(
            length, together, batch, min(batch, most, max(1, length - first) * together)
        )
        for start in range(0, len(rows), together):
            self._run_together(context, rows[start : start + together], start, first, consume)

    def _run_together(
        self, context: Context, rows: np.ndarray, start: int, first: int, consume: Consume
    ) -> None:
        """Rows side by side as separate sequences; a row longer than one call is processed in pieces."""
        context.clear()
        length = rows.shape[1]
        tokens = rows.reshape(-1)
        positions = np.tile(np.arange(length), len(rows))
        sequences = np.repeat(np.arange(len(rows)), length)
        wanted = positions >= first
        for piece in _pieces(wanted, context.batch_size, context.outputs):
            logits = context.decode(tokens[piece], positions[piece], sequences[piece], wanted[piece])
            done = 0
            for sequence in np.unique(sequences[piece]):
                mine = (sequences[piece] == sequence) & wanted[piece]
                count = int(mine.sum())
                if count:
                    consume(
                        start + int(sequence), int(positions[piece][mine][0]), logits[done : done + count]
                    )
                done += count

    def tree_logits(
        self, groups: Sequence[Sequence[Sequence[int]]], firsts: Sequence[Sequence[int]], consume: TreeConsume
    ) -> None:
        """Groups are packed into one call each, ``PACKED`` tokens or one group, as long as no row exceeds the
        context."""
        if not self.shares_beginnings:
            super().tree_logits(groups, firsts, consume)
        trees = [
            Tree(number, rows, first) for number, (rows, first) in enumerate(zip(groups, firsts, strict=True))
        ]
        for tree in trees:
            for row in tree.rows:
                self.check_rows(np.asarray([row], np.int64))
        if not trees:
            return
        room = max(PACKED, *(tree.size for tree in trees))
        most = max(1, LOGITS_BYTES // (4 * self.vocabulary))
        outputs = min(room, max(most, *(tree.outputs for tree in trees)))
        self._drop()
        self._windows = context = self.model.context(
            room, sequences=SEQUENCES, batch=room, outputs=outputs, threads=self.threads, exact=self.exact,
            flash=self._flash, unified=True,
        )  # fmt: skip
        packed: list[Tree] = []
        for tree in trees:
            limits = (("size", room), ("outputs", outputs), ("count", SEQUENCES))
            if packed and any(
                sum(getattr(t, what) for t in (*packed, tree)) > limit for what, limit in limits
            ):
                run_packed(context, packed, consume)
                packed = []
            packed.append(tree)
        run_packed(context, packed, consume)

    def _windows_context(self, length: int, sequences: int, batch: int, outputs: int) -> Context:
        old = self._windows
        if old is not None and (old.length, old.sequences, old.outputs) == (length, sequences, outputs):
            return old
        self._drop()
        self._windows = self._new_context(length, sequences, batch, outputs)
        return self._windows

    def _new_context(self, length: int, sequences: int, batch: int, outputs: int) -> Context:
        batch = min(batch, length * sequences)
        return self.model.context(
            length,
            sequences=sequences,
            batch=batch,
            outputs=min(batch, outputs),
            threads=self.threads,
            exact=self.exact,
            flash=self._flash,
        )

    def tune(self, attention: str = "", compiled: bool = False) -> None:
        if compiled:
            raise Unsupported("llama.cpp does not compile models; drop --compile for GGUF files")
        if attention not in ("", *ATTENTION):
            raise Unsupported(
                f"llama.cpp has no attention called {attention!r}; it has {' and '.join(ATTENTION)}"
            )
        self._flash = ATTENTION.get(attention)
        self._drop()

    def start(self, ids: Sequence[int]) -> np.ndarray:
        return np.asarray(self.start_rows(np.asarray([ids], np.int64))[0])

    def step(self, token: int) -> np.ndarray:
        return np.asarray(self.step_rows(np.asarray([token], np.int64))[0])

    def start_rows(self, rows: np.ndarray) -> np.ndarray:
        self.check_rows(rows)
        count, length = rows.shape
        needed = self._given_context or min(self.context, length + DECODE_ROOM)
        if self._stream is None or self._stream.length < needed or self._stream.sequences != count:
            self._drop()
            self._stream = self._new_context(needed, count, BATCH, count)
        self._stream.clear()
        self._position = 0
        return self._append(rows)

    def step_rows(self, tokens: np.ndarray) -> np.ndarray:
        if self._stream is None:
            raise RuntimeError("step before start")
        if self._position >= self._stream.length:
            raise BadInput(f"more than {self._stream.length} tokens; open the model with a larger context")
        return self._append(tokens[:, None])

    def _append(self, rows: np.ndarray) -> np.ndarray:
        """Process (n, length) more tokens of all sequences; the logits of the last of each."""
        assert self._stream is not None
        count, length = rows.shape
        tokens, size = rows.reshape(-1), self._stream.batch_size
        positions = np.tile(np.arange(self._position, self._position + length), count)
        sequences = np.repeat(np.arange(count), length)
        wanted = np.tile(np.arange(length) == length - 1, count)
        found = []
        for begin in range(0, len(tokens), size):
            piece = slice(begin, begin + size)
            found.append(
                self._stream.decode(tokens[piece], positions[piece], sequences[piece], wanted[piece]).copy()
            )
        self._position += length
        return np.concatenate(found)

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        return self.model.tokenize(text, add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.model.detokenize(ids)

    def describe(self) -> dict[str, Any]:
        return {
            "backend": "llama.cpp",
            **self.model.describe(),
            **self.model.special_tokens,
            "device": "gpu" if self.gpu else "cpu",
            "dtype": "KV cache F32, flash attention off"
            if self.exact
            else "llama.cpp's defaults (KV cache F16)",
            "threads": self.threads,
        }

    def _drop(self) -> None:
        for context in (self._windows, self._stream):
            if context is not None:
                context.close()
        self._windows = self._stream = None

    def close(self) -> None:
        self._drop()
        self.model.close()


def _open_here(path: Path, device: str) -> llamacpp.Model:
    check_metadata(read_gguf(path))
    return llamacpp.Model(path, device=device)


def _open_apart(path: Path, device: str) -> llamacpp_apart.Model:
    model = llamacpp_apart.Model(path)
    try:
        check_metadata(read_gguf(path))  # while the child starts
        model.open(device)
    except BaseException:
        model.close()
        raise
    return model


def _pieces(wanted: np.ndarray, size: int, outputs: int) -> Iterator[slice]:
    """Consecutive ranges of at most ``size`` positions, at most ``outputs`` of them wanted."""
    before = np.concatenate([[0], np.cumsum(wanted)])
    begin = 0
    while begin < len(wanted):
        end = int(np.searchsorted(before, before[begin] + outputs, side="right")) - 1
        end = min(end, begin + size, len(wanted))
        yield slice(begin, end)
        begin = end
