"""Samples of a model, kept in the user's cache: the next recipe of the same job, and a conversion that was
interrupted, need not draw them again."""

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
#: files that are kept, some hundred kilobytes each; the oldest go first
MOST = 32


def kept_ids(
    key: Mapping[str, Any], shape: tuple[int, int], make: Callable[[], np.ndarray]
) -> tuple[np.ndarray, bool]:
    """(ids (rows, length) int64 that ``key`` (JSON) names, whether they lay there); made, and kept, where
    they did not. A cache that cannot be read or written is as an empty one."""
    text = json.dumps(key, sort_keys=True)
    with contextlib.suppress(OSError, RuntimeError, ValueError, EOFError):
        path = _path(text)
        found = np.load(path, allow_pickle=False)
        if found.shape == shape and found.dtype == np.int64 and found.min(initial=0) >= 0:
            return found, True
    ids = make()
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(text)
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f"{path.stem}.{os.getpid()}.new.npy")
        np.save(new, ids)
        os.replace(new, path)
        for old in sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime)[:-MOST]:
            old.unlink(missing_ok=True)
    return ids, False


def samples_files() -> list[Path]:
    """All that are kept."""
    folder = user_cache() / FOLDER
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _path(text: str) -> Path:
    return user_cache() / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
