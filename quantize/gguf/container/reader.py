"""Reads the header of a GGUF file, trusting nothing in it.

Every count, length and offset is checked against the bytes that are there before anything is allocated, so
that a damaged or hostile file costs one clear error and no memory. Tensor data is memory-mapped when asked
for.
Source: the GGUF specification (ggml-org/ggml, docs/gguf.md), versions 2 and 3.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.files import MAGIC
from quantize.kernels.block_types import GGML_QUANT_SIZES, Type, tensor_bytes

MAX_ELEMENTS = 1 << 24  # of one metadata array; the largest vocabularies have a twentieth of that
MAX_STRING = 1 << 26  # bytes of one metadata string
MAX_KEY = 1 << 16
MAX_DEPTH = 4  # arrays within arrays
MAX_ENTRIES = 1 << 17  # tensors, or metadata entries

_SCALARS: dict[int, str] = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """``shape`` rows first (numpy's order); ``offset`` from the start of ``file``."""

    name: str
    shape: tuple[int, ...]
    kind: Type
    file: Path
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GgufFile:
    """``kvs``: key -> plain value (arrays as lists); ``kv_types``: key -> (type, element type of arrays or
    None)."""

    path: Path
    version: int
    kvs: dict[str, Any]
    kv_types: dict[str, tuple[GGUFValueType, GGUFValueType | None]]
    tensors: dict[str, GgufTensor]

    def raw(self, name: str) -> np.ndarray:
        """The bytes of one tensor (rows, bytes of a row) uint8, memory-mapped."""
        tensor = self.tensors[name]
        rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
        data = np.memmap(tensor.file, np.uint8, "r", tensor.offset, (tensor.size_bytes,))
        return data.reshape(rows, tensor.size_bytes // rows)

    def dequantize(self, name: str) -> np.ndarray:
        """One tensor as float32 of its shape, by gguf-py's numpy code (no ggml), in slabs of rows.

        Errors: Unsupported where gguf-py has no code for the type (integers, and blocks that no file on disk
        uses).
        """
        tensor = self.tensors[name]
        return self._values(tensor, self.raw(name)).reshape(tensor.shape)

    def matrix(self, name: str, index: int) -> np.ndarray:
        """One of the matrices of a tensor of three axes, as ``dequantize`` gives it; no other is read."""
        tensor = self.tensors[name]
        rows = tensor.shape[-2]
        return self._values(tensor, self.raw(name)[index * rows : (index + 1) * rows])

    @staticmethod
    def _values(tensor: GgufTensor, raw: np.ndarray) -> np.ndarray:
        from gguf.quants import dequantize

        out = np.empty((raw.shape[0], tensor.shape[-1]), np.float32)
        slab = max(1, (1 << 22) // max(1, tensor.shape[-1]))
        for first in range(0, raw.shape[0], slab):
            part = np.ascontiguousarray(raw[first : first + slab])
            if tensor.kind is Type.F32:
                out[first : first + slab] = part.view("<f4")
            elif tensor.kind is Type.F16:
                out[first : first + slab] = part.view("<f2")
            else:
                try:
                    out[first : first + slab] = dequantize(part, tensor.kind)
                except NotImplementedError:
                    raise Unsupported(
                        f"{tensor.file}: tensor {tensor.name} is {tensor.kind.name}, which is not "
                        "a type of weights"
                    ) from None
        return out


#: ``fetch(file, end)``: see that the bytes up to ``end`` are in the file; returns up to where they are now
Fetch = Callable[[Path, int], int]


def read_gguf(path: Path | str, fetch: Fetch | None = None) -> GgufFile:
    """A GGUF file's header, and those of the other parts where it is the first of a split one.

    ``fetch``: where the files have their size but not yet their bytes, asked before any is read.

    Errors: BadInput where the file is not GGUF, truncated, inconsistent, or of a version or tensor type
    unknown here.
    """
    path = Path(path)
    first = _read_one(path, fetch)
    count = first.kvs.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return first
    if first.kvs.get("split.no") != 0:
        raise BadInput(
            f"{path}: part {first.kvs.get('split.no')} of a split GGUF; give the first part (-00001-of-)"
        )
    stem, suffix = path.name.rsplit("-00001-of-", 1) if "-00001-of-" in path.name else (None, None)
    if stem is None or suffix is None:
        raise BadInput(
            f"{path}: says it is one of {count} parts, but its name does not end in "
            f"-00001-of-{count:05d}.gguf"
        )
    tensors = dict(first.tensors)
    for index in range(2, count + 1):
        part = path.with_name(f"{stem}-{index:05d}-of-{suffix}")
        if not part.is_file():
            raise BadInput(f"{path}: part {part.name} is missing; put all {count} parts into one folder")
        more = _read_one(part, fetch).tensors
        if twice := tensors.keys() & more.keys():
            raise BadInput(f"{part}: tensor {min(twice)} is also in an earlier part")
        tensors.update(more)
    expected = first.kvs.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise BadInput(
            f"{path}: its parts hold {len(tensors)} tensors, "
            f"its header says {expected}; fetch the parts again"
        )
    return GgufFile(path, first.version, first.kvs, first.kv_types, tensors)


def _read_one(path: Path, fetch: Fetch | None) -> GgufFile:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise BadInput(f"{path}: empty file, not GGUF; fetch it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data, fetch).parse()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a folder; give the .gguf file") from None


class _Parser:
    def __init__(self, path: Path, data: "mmap.mmap", fetch: Fetch | None):
        self.path, self.data, self.size, self.at = path, data, len(data), 0
        self.fetch, self.there = fetch, len(data) if fetch is None else 0
        self.elements = 2 * MAX_ELEMENTS  # of all arrays together

    def fail(self, what: str) -> BadInput:
        # ``what`` may quote the file: keep it to one printable line.
        line = "".join(c if c.isprintable() else "?" for c in what)[:300]
        return BadInput(f"{self.path}: damaged GGUF: {line}; fetch the file again")

    def need(self, count: int, what: str) -> int:
        """Claim ``count`` bytes; returns where they start."""
        start = self.at
        if count > self.size - start:
            raise self.fail(
                f"truncated in {what} (byte {start}: {count} more expected, {self.size - start} there)"
            )
        self.at = start + count
        if self.at > self.there and self.fetch is not None:
            self.there = self.fetch(self.path, self.at)
        return start

    def scalar(self, code: str, what: str) -> Any:
        start = self.need(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self.data, start)[0]

    def string(self, limit: int, what: str) -> str:
        length = self.scalar("Q", what)
        if length > limit:
            raise self.fail(f"{what} of {length} bytes (at most {limit})")
        start = self.need(length, what)
        return self.data[start : start + length].decode("utf-8", errors="surrogateescape")

    def count(self, smallest: int, what: str) -> int:
        number: int = self.scalar("Q", what)
        if number * smallest > self.size - self.at:
            raise self.fail(f"{what} of {number}, more than fit into the file's {self.size} bytes")
        return number

    def parse(self) -> GgufFile:
        if self.fetch is not None:
            self.there = self.fetch(self.path, min(4, self.size))
        if self.data[:4] != MAGIC:
            raise BadInput(
                f"{self.path}: not a GGUF file (starts with {bytes(self.data[:4])!r}, not b'GGUF')"
            )
        self.at = 4
        version = self.scalar("I", "the version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            hint = "big-endian" if swapped in (2, 3) else f"version {version}"
            raise BadInput(f"{self.path}: GGUF {hint}; only little-endian versions 2 and 3 can be read")
        tensor_count = self.count(8 + 4 + 4 + 8, "number of tensors")
        kv_count = self.count(8 + 4 + 1, "number of metadata entries")
        if max(tensor_count, kv_count) > MAX_ENTRIES:
            raise self.fail(f"{tensor_count} tensors and {kv_count} metadata entries (at most {MAX_ENTRIES})")
        kvs: dict[str, Any] = {}
        kv_types: dict[str, tuple[GGUFValueType, GGUFValueType | None]] = {}
        for _ in range(kv_count):
            key = self.string(MAX_KEY, "a metadata key")
            if key in kvs:
                raise self.fail(f"metadata key {key} twice")
            kind = self.value_type(key)
            kvs[key], element = self.value(kind, key, 0)
            kv_types[key] = (kind, element)
        tensors = self.tensors(tensor_count, self.alignment(kvs))
        return GgufFile(self.path, version, kvs, kv_types, tensors)

    def alignment(self, kvs: dict[str, Any]) -> int:
        value = kvs.get("general.alignment", 32)
        if not isinstance(value, int) or value < 8 or value > 1 << 20 or value & (value - 1):
            raise self.fail(f"general.alignment of {value!r} (a power of two from 8 expected)")
        return value

    def value_type(self, key: str) -> GGUFValueType:
        number = self.scalar("I", f"the type of {key}")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.fail(f"metadata {key} of unknown type {number}") from None

    def value(self, kind: GGUFValueType, key: str, depth: int) -> tuple[Any, GGUFValueType | None]:
        if kind is GGUFValueType.STRING:
            return self.string(MAX_STRING, f"the string {key}"), None
        if kind is not GGUFValueType.ARRAY:
            return self.scalar(_SCALARS[kind], key), None
        if depth == MAX_DEPTH:
            raise self.fail(f"metadata {key} nests arrays deeper than {MAX_DEPTH}")
        element = self.value_type(key)
        simple = _SCALARS.get(element)
        smallest = struct.calcsize("<" + simple) if simple else 8 if element is GGUFValueType.STRING else 12
        count = self.count(smallest, f"array {key}")
        self.elements -= count
        if count > MAX_ELEMENTS or self.elements < 0:
            raise self.fail(f"array {key} of {count} elements (at most {MAX_ELEMENTS})")
        if simple:
            start = self.need(count * smallest, key)
            numbers = np.frombuffer(self.data, np.dtype("<" + simple), count, start)
            values: list[Any] = numbers.tolist()
            del numbers  # it would keep the map from closing
            return values, element
        read: Callable[[], Any] = (
            (lambda: self.string(MAX_STRING, f"a string of {key}"))
            if element is GGUFValueType.STRING
            else (lambda: self.value(element, key, depth + 1)[0])
        )
        return [read() for _ in range(count)], element

    def tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        found: list[tuple[str, tuple[int, ...], Type, int, int]] = []
        names: set[str] = set()
        for _ in range(count):
            name = self.string(MAX_KEY, "a tensor name")
            if name in names:
                raise self.fail(f"tensor {name} twice")
            names.add(name)
            dimensions = self.scalar("I", f"the dimensions of {name}")
            if not 1 <= dimensions <= 4:
                raise self.fail(f"tensor {name} with {dimensions} dimensions (1 to 4 expected)")
            shape = tuple(self.scalar("Q", f"the shape of {name}") for _ in range(dimensions))[::-1]
            number, offset = (
                self.scalar("I", f"the type of {name}"),
                self.scalar("Q", f"the offset of {name}"),
            )
            found.append(
                (name, shape, self.tensor_type(name, number), offset, self.tensor_size(name, shape, number))
            )
        start = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset, size in found:
            if offset % alignment:
                raise self.fail(f"tensor {name} at offset {offset}, not a multiple of {alignment}")
            if start + offset + size > self.size:
                raise self.fail(
                    f"truncated: tensor {name} ends at byte {start + offset + size}, the file has {self.size}"
                )
            tensors[name] = GgufTensor(name, shape, kind, self.path, start + offset, size)
        end, before = 0, ""
        for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.size_bytes)):
            if tensor.offset < end:
                raise self.fail(f"tensors {before} and {tensor.name} overlap")
            end, before = max(end, tensor.offset + tensor.size_bytes), tensor.name
        return tensors

    def tensor_type(self, name: str, number: int) -> Type:
        try:
            return Type(number)
        except ValueError:
            raise self.fail(f"tensor {name} of unknown type {number}") from None

    def tensor_size(self, name: str, shape: tuple[int, ...], number: int) -> int:
        kind = self.tensor_type(name, number)
        block = GGML_QUANT_SIZES[kind][0]
        # no tensor is empty in a real file, and 2**62 x 2**62 x 0 is not an array
        if any(not 0 < extent < 1 << 63 for extent in shape):
            raise self.fail(f"tensor {name} of shape {list(shape)}")
        if shape[-1] % block:
            raise self.fail(
                f"tensor {name}: rows of {shape[-1]} are not a whole number of {kind.name} blocks of {block}"
            )
        return tensor_bytes(kind, shape)
