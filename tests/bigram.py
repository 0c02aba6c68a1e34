"""The smallest exact language model: logits that depend on the last token alone, from a table. A real
Runtime, in numpy; and tasks for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.local_task import LocalTask
from evals.rows import Heading
from quantize.runtimes.base import Consume, Runtime


class Bigram(Runtime):
    """``table``: float32 (vocabulary, vocabulary), row t the logits after token t. ``chunk``: positions
    pushed at once."""

    name = "bigram"

    def __init__(self, table: np.ndarray, context: int = 64, chunk: int = 7, bos: int | None = None):
        self.table = table.astype(np.float32)
        self.vocabulary = len(table)
        self.context = context
        self.chunk = chunk
        self.bos = bos
        self.runs = 0

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        self.check_rows(rows)
        self.runs += len(rows)
        for index, row in enumerate(rows):
            for begin in range(first, len(row), self.chunk):
                buffer = self.table[row[begin : begin + self.chunk]]
                consume(index, begin, buffer)
                buffer[:] = np.nan  # valid during the call only

    def start(self, ids: Sequence[int]) -> np.ndarray:
        return self.table[ids[-1]]

    def step(self, token: int) -> np.ndarray:
        return self.table[token]

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        ids = [ord(c) % (self.vocabulary - 1) + 1 for c in text]
        return [self.bos, *ids] if add_special and self.bos is not None else ids

    def describe(self) -> dict[str, Any]:
        return {"backend": "bigram", "chunk": self.chunk}

    def close(self) -> None:
        pass


def random_table(vocabulary: int = 50, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(vocabulary, vocabulary)) * scale).astype(np.float32)


def naive_log_probs(logits: np.ndarray) -> np.ndarray:
    """float64 log-softmax of one vector, by the definition."""
    wide = [float(x) for x in logits]
    top = max(wide)
    total = sum(np.exp(x - top) for x in wide)
    return np.array([x - top - np.log(total) for x in wide])


HEADING = Heading("model", "digest", "bigram", {})
WORDS = ["stone", "river", "cloud", "tree", "sand", "wind", "rain", "snow"]


def letters_model(seed: int = 0) -> Bigram:
    return Bigram(random_table(60, seed=seed), context=48, bos=0)


def make_task(form: str, n: int = 30) -> LocalTask:
    rng = np.random.default_rng(1)
    items = []
    for _ in range(n):
        words = [str(w) for w in rng.permutation(WORDS)]
        gold = int(rng.integers(3))
        if form == "choices":
            items.append(
                {
                    "query": " ".join(words[:2]),
                    "choices": [words[3], f"{words[4]} {words[5]}", words[6]],
                    "gold": gold,
                }
            )
        else:
            items.append({"context_options": words[:3], "continuation": words[4], "gold": gold})
    return LocalTask("mine", Path("mine.jsonl"), form, tuple(items))
