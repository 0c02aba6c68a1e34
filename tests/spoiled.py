"""Copies of artifacts in which one thing is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quantize.checkpoint.tensors import Entry, StoredTensors, write_folder

#: name -> raw bits, as ``StoredTensors.raw``
Arrays = dict[str, np.ndarray]


def spoil(folder: Path, target: Path, change: Callable[[Arrays], None]) -> Path:
    """``change`` may alter, add and remove tensors; the types of those that stay do not change."""
    shutil.copytree(folder, target)
    stored = StoredTensors(target)
    arrays = {name: np.array(stored.raw(name)) for name in stored}
    types = {name: info.dtype for name, info in stored.info.items()}
    before = {name: array.dtype for name, array in arrays.items()}
    change(arrays)
    types = {
        name: kind for name, kind in types.items() if name in arrays and arrays[name].dtype == before[name]
    }
    for path in target.glob("*.safetensors"):
        path.unlink()
    known = {"float32": "F32", "uint8": "U8", "int32": "I32", "uint16": "BF16"}
    entries = [Entry(n, types.get(n) or known[str(a.dtype)], a.shape) for n, a in arrays.items()]
    write_folder(target, entries, lambda name: np.ascontiguousarray(arrays[name]))
    return target


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | values))
