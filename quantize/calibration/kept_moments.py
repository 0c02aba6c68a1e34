"""Sums of squares over windows of text, kept in the user's cache: a recipe whose pass over the source model
met the same windows before spares others theirs."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantize.calibration.collectors import Moment, Moments
from quantize.files import user_cache

FOLDER = "moments"
#: files that are kept, and their bytes in all; the oldest go first
MOST, MOST_BYTES = 16, 512 << 20
_SUMS, _COUNT = "sums", "count"


def kept_moments(key: Mapping[str, Any]) -> Moments | None:
    """What ``keep_moments`` put under ``key`` (JSON); None where it is not there, or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with contextlib.suppress(OSError, RuntimeError, SafetensorError, ValueError, KeyError):
        found: Moments = {}
        stored = load_file(_path(key))
        for name, sums in stored.items():
            kind, parameter, matrix = name.split(" ")
            if kind == _SUMS:
                count = int(stored[f"{_COUNT} {parameter} {matrix}"][0])
                found.setdefault(parameter, {})[int(matrix)] = Moment(sums, count)
        return found
    return None


def keep_moments(key: Mapping[str, Any], moments: Moments) -> None:
    """A cache that cannot be written, and sums that are larger than all of it, are left out."""
    from safetensors.numpy import save_file

    tensors = {}
    for parameter, found in moments.items():
        for matrix, moment in found.items():
            tensors[f"{_SUMS} {parameter} {matrix}"] = moment.sums
            tensors[f"{_COUNT} {parameter} {matrix}"] = np.array([moment.count], np.int64)
    if sum(each.nbytes for each in tensors.values()) > MOST_BYTES:
        return
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(key)
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f"{path.stem}.{os.getpid()}.new")
        save_file(tensors, new)
        os.replace(new, path)
        left = MOST_BYTES
        for number, old in enumerate(sorted(_files(path.parent), key=_time, reverse=True)):
            left -= old.stat().st_size
            if number >= MOST or left < 0:
                old.unlink(missing_ok=True)


def moments_files() -> list[Path]:
    """All that are kept."""
    return _files(user_cache() / FOLDER)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _time(path: Path) -> float:
    return path.stat().st_mtime


def _path(key: Mapping[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True)
    return user_cache() / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
