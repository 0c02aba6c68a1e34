"""Rows that begin alike in one llama.cpp batch: the tokens they share belong to the sequences of all of
them."""

from collections.abc import Sequence

import numpy as np

from quantize.kernels import llamacpp
from quantize.runtimes import llamacpp_apart
from quantize.runtimes.base import TreeConsume

SEQUENCES = 64  # of one call
Context = llamacpp.Context | llamacpp_apart.Context


class Tree:
    """Rows with a common beginning of ``shared`` tokens. ``size``: tokens to compute; ``outputs``: positions
    that return logits."""

    def __init__(self, number: int, rows: Sequence[Sequence[int]], firsts: Sequence[int]):
        self.number, self.rows, self.firsts, self.count = number, rows, firsts, len(rows)
        self.shared = common_beginning(rows)
        self.size = self.shared + sum(len(row) - self.shared for row in rows)
        self.from_shared = min(min(firsts), self.shared)
        self.outputs = (
            self.shared
            - self.from_shared
            + sum(len(r) - max(f, self.shared) for r, f in zip(rows, firsts, strict=True))
        )


def common_beginning(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows have in common at their start."""
    least, most = min(map(tuple, rows)), max(map(tuple, rows))
    return next(
        (i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), min(len(least), len(most))
    )


def run_packed(context: Context, trees: Sequence[Tree], consume: TreeConsume) -> None:
    """One call; every tree's rows are separate sequences."""
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[Sequence[int]] = []
    wanted: list[bool] = []

    def add(ids: Sequence[int], start: int, owners: Sequence[int], first: int) -> None:
        tokens.extend(ids)
        positions.extend(range(start, start + len(ids)))
        sequences.extend([owners] * len(ids))
        wanted.extend(position >= first for position in range(start, start + len(ids)))

    base = 0
    for tree in trees:
        add(tree.rows[0][: tree.shared], 0, range(base, base + tree.count), tree.from_shared)
        for index, (row, first) in enumerate(zip(tree.rows, tree.firsts, strict=True)):
            add(row[tree.shared :], tree.shared, (base + index,), first)
        base += tree.count
    context.clear()
    logits = context.decode(np.asarray(tokens), np.asarray(positions), sequences, np.asarray(wanted, bool))
    done = 0
    for tree in trees:
        shared = logits[done : done + tree.shared - tree.from_shared]
        done += len(shared)
        for index, (row, first) in enumerate(zip(tree.rows, tree.firsts, strict=True)):
            if first < tree.shared:
                consume(tree.number, index, first, shared[first - tree.from_shared :])
            own = max(first, tree.shared)
            if own < len(row):
                consume(tree.number, index, own, logits[done : done + len(row) - own])
                done += len(row) - own
