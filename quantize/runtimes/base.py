"""Programs that can open a model. Verification, evaluation and benchmarks go through this interface and no
other.

Logits are pushed chunk by chunk to a callback, so that nothing full-size is held.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput, Unsupported

#: ``consume(row, first, logits)``: float32 logits (positions, vocabulary) of row ``row``, starting at
#: position ``first``. The array is valid during the call only.
Consume = Callable[[int, int, np.ndarray], None]

#: ``consume(group, row, first, logits)``: the same of a row of a group.
TreeConsume = Callable[[int, int, int, np.ndarray], None]


class Runtime(ABC):
    """One model, opened. Token ids are plain ints of the source's vocabulary."""

    name: ClassVar[str]
    gives_logits: bool = True  # else only ``token_scores`` and ``generate``
    vocabulary: int  # columns of the logits
    context: int  # most tokens in one window

    @property
    def shares_beginnings(self) -> bool:
        """Whether ``tree_logits`` computes what rows have in common once."""
        return False

    @property
    def by_scores(self) -> bool:
        """Whether texts are scored by ``token_scores`` and continued by ``generate``: of a runtime that gives
        no logits, or gives them only at a price."""
        return not self.gives_logits

    @abstractmethod
    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        """Run every row of ``rows`` (n, length) from an empty cache; push logits of positions
        ``first``..length-1.

        Position t's logits predict token t+1. Rows are independent of one another. Errors: BadInput where a
        row is longer than ``context`` or an id is outside the vocabulary.
        """

    def tree_logits(
        self, groups: Sequence[Sequence[Sequence[int]]], firsts: Sequence[Sequence[int]], consume: TreeConsume
    ) -> None:
        """``logits`` of rows of any lengths, in groups of rows that begin alike: what a group shares is
        computed once.

        ``firsts``: of each row the position from which its logits are wanted. Errors: as ``logits``;
        Unsupported where the runtime computes rows one by one anyway (``shares_beginnings``).
        """
        raise Unsupported(f"{self.name} computes every row separately")

    def token_scores(
        self, rows: Sequence[Sequence[int]], firsts: Sequence[int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each row's tokens from ``first`` (at least 1) on, given those before: ln p, float64, and rank
        (1: the likeliest).

        For runtimes that do not return logits.
        """
        raise Unsupported(f"{self.name} gives logits")

    @abstractmethod
    def start(self, ids: Sequence[int]) -> np.ndarray:
        """Empty the cache, process ``ids`` in one go (prefill), return the last position's logits
        (vocabulary,) float32."""

    @abstractmethod
    def step(self, token: int) -> np.ndarray:
        """Append one token to what ``start`` began (decode); return its logits (vocabulary,) float32."""

    def start_rows(self, rows: np.ndarray) -> np.ndarray:
        """``start`` of several sequences of equal length at once: ids (n, length) -> float32 (n, vocabulary).

        Errors: Unsupported where the runtime takes one at a time.
        """
        raise Unsupported(f"{self.name} takes one sequence at a time")

    def step_rows(self, tokens: np.ndarray) -> np.ndarray:
        """``step`` of all rows that ``start_rows`` began: one token each (n,) -> float32 (n, vocabulary)."""
        raise Unsupported(f"{self.name} takes one sequence at a time")

    def tune(self, attention: str = "", compiled: bool = False) -> None:
        """From here on, use the attention implementation of that name, and run compiled code.

        Errors: Unsupported where the runtime does not have it, or does not compile.
        """
        if attention or compiled:
            raise Unsupported(f"{self.name}: has no choice of attention or compilation")

    @abstractmethod
    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """The runtime's own tokenizer."""

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens included. Errors: Unsupported where the runtime has no
        tokenizer."""
        raise Unsupported("generating text needs the source's tokenizer; give --reference MODEL")

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What belongs to every result: backend, its version or revision, CPU features or GPU, dtype,
        threads."""

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    def generate(self, ids: Sequence[int], tokens: int) -> list[int]:
        """Greedy continuation of ``ids`` by ``tokens`` tokens."""
        out: list[int] = []
        logits = self.start(ids)
        while True:
            out.append(int(logits.argmax()))
            if len(out) == tokens:
                return out
            logits = self.step(out[-1])

    def check_rows(self, rows: np.ndarray) -> None:
        if rows.shape[1] > self.context:
            raise BadInput(
                f"a window of {rows.shape[1]} tokens exceeds the "
                f"model's context of {self.context}; use a shorter one"
            )
        if rows.size and (rows.min() < 0 or rows.max() >= self.vocabulary):
            raise BadInput(
                f"token id {int(rows.max() if rows.max() >= self.vocabulary else rows.min())} is outside "
                f"the model's vocabulary of {self.vocabulary}: the ids were made by another tokenizer"
            )

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FolderRuntime(Runtime):
    """Opens a Hugging Face folder: text goes through the folder's own tokenizer file."""

    folder: Path

    @cached_property
    def _tokenizer(self) -> SourceTokenizer:
        return SourceTokenizer.open(self.folder)

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))
