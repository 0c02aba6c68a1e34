"""The header of a safetensors file: which tensors it holds and where, checked as strictly as the format's own
library does.

Whatever is read here can be memory-mapped without another look: shapes are whole numbers, types are known,
every tensor fills exactly the bytes it names, and the tensors fill the file without holes or overlaps.
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantize.dtypes import BITS, NUMPY
from quantize.errors import BadInput, Unsupported
from quantize.files import parse_json, require_file
from quantize.terminal import printable

#: The format allows 100 MB, of which a Python parser makes gigabytes. All 91,991 tensors of DeepSeek-V3 (671
#: B parameters), in one header, would take 13 MB.
MAX_HEADER_BYTES = 32 << 20
MAX_HEADER_ITEMS = 2_500_000
MAX_AXES = 16  # numpy takes 64
MAX_ELEMENTS = 1 << 48
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor, wherever its data come from; ``dtype`` is safetensors' name for it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.parameters * BITS[self.dtype] // 8


@dataclass(frozen=True)
class StoredTensor(TensorInfo):
    """And where it lies in a safetensors file: ``offset`` counts from the start of ``file``."""

    file: Path
    offset: int


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, in the header's order.

    Errors: BadInput where the file cannot be read, is truncated, or its header is not one that the format
    allows.
    """
    size, header, start = _parsed(path)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry, start, size) for name, entry in header.items()}
    _check_order(path, tensors, start, size)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What one safetensors file says of itself. Errors: as of ``read_safetensors_header``."""
    metadata: dict[str, str] = _parsed(path)[1].get("__metadata__") or {}
    return metadata


def _parsed(path: Path) -> tuple[int, dict[str, Any], int]:
    """-> (size of the file, its header, where the data begin)"""
    size, raw = _header_bytes(path)
    header = parse_json(raw, f"{path}: its safetensors header", MAX_HEADER_ITEMS)
    if not isinstance(header, dict):
        raise BadInput(f"{path}: its safetensors header is not an object; fetch the file again")
    metadata = header.get("__metadata__")
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise BadInput(
            f"{path}: __metadata__ of its safetensors header is not a map of texts; fetch the file again"
        )
    return size, header, 8 + len(raw)


def entry_of(info: StoredTensor, index: int) -> StoredTensor:
    """One entry of the first axis, as a tensor by itself."""
    shape = info.shape[1:]
    size = info.size_bytes // info.shape[0]
    return StoredTensor(info.name, shape, info.dtype, info.file, info.offset + index * size)


def read_raw(info: StoredTensor) -> np.ndarray:
    """The data of one tensor, BF16 as uint16 bit patterns and 8-bit floats as uint8. Memory-mapped: nothing
    is copied until used.

    Errors: Unsupported for types of less than a byte.
    """
    if info.dtype not in NUMPY:
        raise Unsupported(
            f"{info.file}: tensor {info.name} is of type {info.dtype}, which cannot be read here"
        )
    dtype = NUMPY[info.dtype]
    if info.parameters == 0:
        return np.empty(info.shape, dtype)
    data = np.memmap(info.file, dtype=dtype, mode="r", offset=info.offset, shape=info.shape or (1,))
    return data.reshape(info.shape)


def _header_bytes(path: Path) -> tuple[int, bytes]:
    """-> (size of the file, its header)"""
    try:
        require_file(path)
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise BadInput(
                    f"{path}: truncated: {size} bytes, not even a safetensors header; fetch the file again"
                )
            (length,) = struct.unpack("<Q", prefix)
            if length > size - 8:
                raise BadInput(
                    f"{path}: truncated or not safetensors: header of "
                    f"{length} bytes in a file of {size}; fetch the file again"
                )
            if length > MAX_HEADER_BYTES:
                raise BadInput(
                    f"{path}: its safetensors header has {length:,} bytes, more "
                    f"than the limit ({MAX_HEADER_BYTES:,}); save it in shards"
                )
            return size, file.read(length)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    def wrong(what: str) -> BadInput:
        return BadInput(f"{path}: tensor {printable(name, 200)} {what}; fetch the file again")

    if not name or len(name) > 1024 or _CONTROL.search(name):
        raise wrong("has an invalid name")
    if not isinstance(entry, dict):
        raise wrong("is not described by an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise wrong(f"is of type {printable(dtype, 40)}, which safetensors does not have")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(_is_count(axis) for axis in shape):
        raise wrong(
            f"has the shape {printable(shape, 100)}; expected whole numbers, at most {MAX_AXES} of them"
        )
    if math.prod(max(axis, 1) for axis in shape) > MAX_ELEMENTS:
        raise wrong(f"has the shape {printable(shape, 100)}, which is too large for any file")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise wrong(f"has the offsets {printable(offsets, 100)}; expected its begin and end")
    begin, end = offsets
    if start + end > size:
        raise BadInput(
            f"{path}: truncated: tensor {printable(name, 200)} ends at "
            f"byte {start + end}, the file has {size}; fetch the file again"
        )
    if math.prod(shape) * BITS[dtype] != 8 * (end - begin):
        raise BadInput(
            f"{path}: tensor {printable(name, 200)} of shape {shape} {dtype} "
            f"does not fill its {end - begin} bytes; fetch the file again"
        )
    return StoredTensor(name, tuple(shape), dtype, path, start + begin)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _check_order(path: Path, tensors: dict[str, StoredTensor], start: int, size: int) -> None:
    """The format requires the tensors one after the other, from the header to the end of the file."""
    at, before = start, "the header"
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.size_bytes)):
        name = f"tensor {printable(info.name, 200)}"
        if info.offset != at:
            what = "overlaps" if info.offset < at else "leaves a gap after"
            raise BadInput(f"{path}: {name} {what} {before}; fetch the file again")
        at, before = info.offset + info.size_bytes, name
    if at != size:
        raise BadInput(f"{path}: {size - at} bytes after {before} belong to no tensor; fetch the file again")
