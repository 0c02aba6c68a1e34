"""Rows shared among as many threads as torch uses: compiled kernels release Python's lock."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def over_rows(work: Callable[[int, int], None], rows: int, least: int) -> None:
    """``work(first, last)`` for parts of ``rows``, each of at least ``least`` and starting at a multiple of
    it."""
    import torch

    threads = max(1, min(torch.get_num_threads(), rows // least))
    if threads == 1:
        work(0, rows)
        return
    bounds = [rows * number // threads // least * least for number in range(threads)] + [rows]
    list(_pool(threads).map(work, bounds[:-1], bounds[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")
