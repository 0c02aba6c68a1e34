"""Samples of a model, and a text that takes seconds to put together, kept in the user's cache: the next
recipe of the same job, and a conversion that was interrupted, need not make them again."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantize.files import user_cache

FOLDER = "samples"
#: files that are kept, up to some megabytes each; the oldest go first
MOST = 32


def kept_ids(
    key: Mapping[str, Any], shape: tuple[int, int], make: Callable[[], np.ndarray]
) -> tuple[np.ndarray, bool]:
    """(ids (rows, length) int64 that ``key`` (JSON) names, whether they lay there); made, and kept, where
    they did not. A cache that cannot be read or written is as an empty one."""
    text = json.dumps(key, sort_keys=True)
    with contextlib.suppress(OSError, RuntimeError, ValueError, EOFError):
        found = np.load(_path(text, ".npy"), allow_pickle=False)
        if found.shape == shape and found.dtype == np.int64 and found.min(initial=0) >= 0:
            return found, True
    ids = make()
    _keep(text, ".npy", lambda path: np.save(path, ids))
    return ids, False


def kept_text(key: Mapping[str, Any], make: Callable[[], str]) -> str:
    """The text that ``key`` (JSON) names; made, and kept behind its sha256, where it does not lie there."""
    name = json.dumps(key, sort_keys=True)
    with contextlib.suppress(OSError, RuntimeError):
        sha256, _, stored = _path(name, ".txt").read_bytes().partition(b"\n")
        if hashlib.sha256(stored).hexdigest().encode() == sha256:
            return stored.decode()
    text = make()
    stored = text.encode()
    sha256 = hashlib.sha256(stored).hexdigest().encode()
    _keep(name, ".txt", lambda path: path.write_bytes(sha256 + b"\n" + stored))
    return text


def _keep(key: str, suffix: str, write: Callable[[Path], Any]) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(key, suffix)
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f"{path.stem}.{os.getpid()}.new{suffix}")
        write(new)
        os.replace(new, path)
        for old in sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime)[:-MOST]:
            old.unlink(missing_ok=True)


def samples_files() -> list[Path]:
    """All that are kept."""
    folder = user_cache() / FOLDER
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _path(key: str, suffix: str) -> Path:
    return user_cache() / FOLDER / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{suffix}"
