"""SHA-256 of files."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

#: what a core's cache holds: copying is cheaper then than mapping, and smaller parts would have a thread wait
#: for the interpreter more often
READ_AT_ONCE = 1 << 20


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        update_from(digest, file.fileno(), 0)
    return digest.hexdigest()


def sha256_files(paths: Iterable[Path], sha256: Callable[[Path], str] = sha256_file) -> dict[Path, str]:
    """Several at a time, in the order given: hashing is the longest part of a conversion that only copies."""
    paths = list(paths)
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        return dict(zip(paths, pool.map(sha256, paths), strict=True))


def update_from(digest: Any, file: int, start: int, end: int | None = None) -> int:
    """``digest`` with the bytes of the descriptor ``file`` from ``start`` to ``end``, or to the file's end.
    Returns how far it came."""
    room = memoryview(bytearray(READ_AT_ONCE))
    while end is None or start < end:
        read = os.preadv(file, [room if end is None else room[: end - start]], start)
        if not read:
            break
        digest.update(room[:read])
        start += read
    return start
