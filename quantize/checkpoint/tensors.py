"""Safetensors folders, read and written by our own code: headers as JSON, data memory-mapped or streamed.

The readers that verify artifacts use it, so that they share nothing with the libraries that wrote them.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.checkpoint.safetensors_header import StoredTensor, TensorInfo, entry_of, read_raw
from quantize.checkpoint.weight_files import INDEX, read_weights
from quantize.dtypes import BYTES, STORED, to_float32

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5 * 10**9
# of the first tensor in a file, and of every tensor before the first whose size is no multiple of it
ALIGNMENT = 64


class StoredTensors:
    """The model's tensors in one folder (``quantize.checkpoint.weight_files`` says in which files). Errors:
    BadInput."""

    def __init__(self, folder: Path):
        self.info: dict[str, StoredTensor] = read_weights(folder)[0]

    def __contains__(self, name: object) -> bool:
        return name in self.info

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def raw(self, name: str) -> np.ndarray:
        """Stored bits: bfloat16 as uint16, float8 as uint8. Errors: KeyError."""
        return read_raw(self.info[name])

    def float32(self, name: str) -> np.ndarray:
        """A floating tensor's values, exact except for F64."""
        info = self.info[name]
        return to_float32(self.raw(name), info.dtype)

    def float32_entry(self, name: str, index: int) -> np.ndarray:
        """One entry of its first axis; no other is read."""
        info = self.info[name]
        return to_float32(read_raw(entry_of(info, index)), info.dtype)

    @property
    def size_bytes(self) -> int:
        return sum(info.size_bytes for info in self.info.values())


@dataclass(frozen=True)
class Entry:
    """One tensor to write: ``dtype`` is safetensors' name for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        size = BYTES[self.dtype]
        for axis in self.shape:
            size *= axis
        return size


def write_folder(
    folder: Path,
    entries: Iterable[Entry],
    data: Callable[[str], Any],
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write ``model.safetensors``, or shards of at most ``shard_bytes`` with an index, one tensor in memory
    at a time.

    ``data(name)`` returns a contiguous array of exactly the entry's bytes, or several, one behind the other.
    ``metadata``: what every file says of itself, beside its format.
    Returns the bytes of tensor data.
    The same entries and data produce the same bytes.
    """
    shards = named_shards(folder, entries, shard_bytes)
    for path, shard in shards.items():
        _write_file(path, shard, data, metadata)
    return sum(entry.size_bytes for shard in shards.values() for entry in shard)


def named_shards(folder: Path, entries: Iterable[Entry], shard_bytes: int) -> dict[Path, list[Entry]]:
    """File -> its entries in order; of several files the index is written."""
    shards = _in_shards(entries, shard_bytes)
    count = len(shards)
    names = (
        ["model.safetensors"]
        if count == 1
        else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    )
    if count > 1:
        total = sum(entry.size_bytes for shard in shards for entry in shard)
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {folder / name: shard for name, shard in zip(names, shards, strict=True)}


def as_written(entries: Iterable[Entry]) -> dict[str, TensorInfo]:
    """Of what ``write_folder`` would write, what would be read back, in that order."""
    ordered = (entry for shard in _in_shards(entries, SHARD_BYTES) for entry in shard)
    return {entry.name: TensorInfo(entry.name, entry.shape, entry.dtype) for entry in ordered}


def _in_shards(entries: Iterable[Entry], shard_bytes: int) -> list[list[Entry]]:
    """The entries of each file, in order.

    The format allows no gaps, and kernels that work in the mapped file need alignment: torch's int8 kernel
    for CPUs, which optimum-quanto calls, ends the process at a weight that does not lie at a multiple of 16.
    So tensors of whole lines come first, by name, so that a layer lies together and who writes or reads
    layer by layer goes through the file once; then the others by width, as the safetensors library orders
    all.
    """
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.size_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.size_bytes
    return [sorted(shard, key=_place) for shard in shards]


def _place(entry: Entry) -> tuple[bool, int, str]:
    loose = entry.size_bytes % ALIGNMENT != 0
    return loose, -BYTES[entry.dtype] if loose else 0, entry.name


def header_bytes(ordered: list[Entry], metadata: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """What a file begins with whose data are those of ``ordered``, one after the other."""
    header: dict[str, Any] = {"__metadata__": {**metadata, "format": "pt"}}
    offset = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.size_bytes],
        }
        offset += entry.size_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)
    return struct.pack("<Q", len(encoded)) + encoded


def _write_file(
    path: Path, ordered: list[Entry], data: Callable[[str], Any], metadata: Mapping[str, str]
) -> None:
    with open(path, "wb") as file:
        file.write(header_bytes(ordered, metadata))
        for entry in ordered:
            given = data(entry.name)
            if not isinstance(given, Iterator):
                file.write(entry_bytes(entry, given).data)
                continue
            end = file.tell() + entry.size_bytes
            for part in given:
                file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            if file.tell() != end:
                raise AssertionError(f"{entry.name}: {file.tell() - end} bytes more than planned")


def entry_bytes(entry: Entry, values: Any) -> np.ndarray:
    """uint8 (n,): the data of ``entry``, of exactly its bytes."""
    block: np.ndarray = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if len(block) != entry.size_bytes:
        raise AssertionError(f"{entry.name}: {len(block)} bytes given for {entry.size_bytes}")
    return block


def torch_entry(name: str, tensor: "torch.Tensor") -> Entry:
    return Entry(name, STORED[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape))


def torch_bytes(tensor: "torch.Tensor") -> np.ndarray:
    """The tensor's bytes as uint8 (n,)."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw: np.ndarray = flat.view(torch.uint8).numpy()
    return raw


def write_state(
    folder: Path,
    state: "dict[str, torch.Tensor]",
    shard_bytes: int = SHARD_BYTES,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """``write_folder`` of a state dict, names in order."""
    return write_folder(
        folder,
        [torch_entry(n, state[n]) for n in sorted(state)],
        lambda name: torch_bytes(state[name]),
        shard_bytes,
        metadata,
    )


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
