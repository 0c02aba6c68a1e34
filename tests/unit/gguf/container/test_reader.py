"""Good headers are read back; damaged ones cost one clear error."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType as V
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantize.errors import BadInput
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.container.writer import Planned, header, part_path, write_gguf
from quantize.kernels.block_types import Type, row_bytes

KVS = {
    "general.architecture": ("llama", V.STRING),
    "general.file_type": (15, V.UINT32),
    "tokenizer.ggml.tokens": (["a", "é", "\udcff"], V.ARRAY),
    "tokenizer.ggml.scores": ([0.5, -1.0, 2.0], V.ARRAY),
    "tokenizer.ggml.token_type": ([1, 2, 3], V.ARRAY),
    "llama.rope.scaling.enabled": (True, V.BOOL),
    "llama.big": (2**63, V.UINT64),
}


def fail() -> None:
    raise AssertionError("nothing is damaged here")


def planned(name: str, values: np.ndarray, kind: Type = Type.F32) -> Planned:
    return Planned(name, values.shape, kind, lambda: values.reshape(-1, values.shape[-1]), fail)


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    tensors = [
        planned("a.weight", np.arange(64, dtype=np.float32).reshape(2, 32)),
        planned("b.weight", np.ones(3, np.float32)),
    ]
    path = tmp_path / "good.gguf"
    write_gguf(path, KVS, tensors, threads=1)
    return path.read_bytes()


def test_what_was_written_is_read(tmp_path: Path, good: bytes) -> None:
    file = read_gguf(tmp_path / "good.gguf")
    assert file.kvs == {key: value for key, (value, _) in KVS.items()}
    assert list(file.tensors) == ["a.weight", "b.weight"]
    assert np.array_equal(file.dequantize("a.weight"), np.arange(64).reshape(2, 32))
    assert file.dequantize("b.weight").shape == (3,)
    assert len(good) % 32 == 0


def test_gguf_py_reads_it_too(tmp_path: Path, good: bytes) -> None:
    from gguf import GGUFReader

    theirs = GGUFReader(tmp_path / "good.gguf")
    assert [t.name for t in theirs.tensors] == ["a.weight", "b.weight"]
    assert np.array_equal(theirs.tensors[0].data, np.arange(64, dtype=np.float32).reshape(2, 32))
    assert theirs.fields["general.file_type"].contents() == 15


def entry(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    raw = name.encode()
    start = struct.pack("<Q", len(raw)) + raw + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return start + struct.pack("<IQ", kind, offset)


def document(
    kvs: bytes = b"", kv_count: int = 0, tensors: bytes = b"", tensor_count: int = 0, data: int = 0
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, tensor_count, kv_count) + kvs + tensors
    return head + bytes(-len(head) % 32) + bytes(data)


def kv(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


HUGE = 2**63 + 5
BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda good: b"", "empty"),
    "another format": (lambda good: b"PK\3\4" + good[4:], "not a GGUF"),
    "version 1": (lambda good: b"GGUF" + struct.pack("<I", 1) + good[8:], "version 1"),
    "big-endian": (lambda good: b"GGUF" + struct.pack(">I", 3) + good[8:], "big-endian"),
    "header cut": (lambda good: good[:40], "number of tensors"),
    "magic alone": (lambda good: good[:4], "truncated"),
    "data cut": (lambda good: good[:-64], "truncated"),
    "huge tensor count": (lambda good: good[:8] + struct.pack("<Q", HUGE) + good[16:], "number of tensors"),
    "huge metadata count": (
        lambda good: good[:16] + struct.pack("<Q", HUGE) + good[24:],
        "number of metadata",
    ),
    "negative count": (lambda good: good[:16] + struct.pack("<q", -1) + good[24:], "number of metadata"),
    "huge key": (lambda good: document(struct.pack("<Q", HUGE) + bytes(64), 1), "metadata key"),
    "huge string": (
        lambda good: document(kv(b"k", V.STRING, struct.pack("<Q", 2**40)), 1, data=64),
        "string k",
    ),
    "string past the end": (
        lambda good: document(kv(b"k", V.STRING, struct.pack("<Q", 2**20)), 1, data=64),
        "truncated",
    ),
    "huge array": (
        lambda good: document(kv(b"k", V.ARRAY, struct.pack("<IQ", V.UINT8, HUGE)), 1, data=64),
        "array k",
    ),
    "key twice": (lambda good: document(kv(b"k", V.UINT8, b"\0") * 2, 2, data=64), "twice"),
    "unknown value type": (lambda good: document(kv(b"k", 99, b""), 1, data=64), "unknown type 99"),
    "deep nesting": (
        lambda good: document(kv(b"k", V.ARRAY, struct.pack("<IQ", V.ARRAY, 1) * 40), 1, data=640),
        "nests arrays",
    ),
    "alignment of zero": (
        lambda good: document(kv(b"general.alignment", V.UINT32, bytes(4)), 1, data=64),
        "general.alignment",
    ),
    "alignment as text": (
        lambda good: document(kv(b"general.alignment", V.STRING, struct.pack("<Q", 2) + b"32"), 1, data=64),
        "general.alignment",
    ),
    "no dimensions": (lambda good: document(b"", 0, entry("t", (), 0, 0), 1, 64), "dimensions"),
    "many dimensions": (lambda good: document(b"", 0, entry("t", (1,) * 9, 0, 0), 1, 64), "dimensions"),
    "huge shape": (
        lambda good: document(b"", 0, entry("t", (2**62, 2**62, 2**62), 0, 0), 1, 64),
        "truncated",
    ),
    "unknown tensor type": (lambda good: document(b"", 0, entry("t", (32,), 5, 0), 1, 64), "unknown type 5"),
    "half a block": (
        lambda good: document(b"", 0, entry("t", (100,), int(Type.Q4_K), 0), 1, 640),
        "whole number",
    ),
    "tensor twice": (lambda good: document(b"", 0, entry("t", (8,), 0, 0) * 2, 2, 640), "twice"),
    "overlap": (
        lambda good: document(b"", 0, entry("t", (32,), 0, 0) + entry("u", (32,), 0, 32), 2, 640),
        "overlap",
    ),
    "odd offset": (lambda good: document(b"", 0, entry("t", (8,), 0, 4), 1, 640), "multiple of 32"),
    "offset past the end": (lambda good: document(b"", 0, entry("t", (8,), 0, 2**62), 1, 640), "truncated"),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_named(tmp_path: Path, good: bytes, case: str) -> None:
    damage, message = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(damage(good))
    with pytest.raises(BadInput, match=message) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_and_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(BadInput):
            read_gguf(path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 1024),
)
def test_random_damage_is_refused_or_read(
    tmp_path: Path, good: bytes, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(good)
    for position, value in edits:
        data[position % len(data)] = value
    if cut < len(data):
        del data[cut:]
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(data)
    try:
        file = read_gguf(path)
    except BadInput as error:
        message = str(error)
    else:
        message = ""
        for name, tensor in file.tensors.items():
            if tensor.kind in (Type.F32, Type.F16):
                assert file.dequantize(name).shape == tensor.shape
    assert "\n" not in message


def test_split_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"blk.{i}.ffn_up.weight": rng.standard_normal((4, 256), np.float32) for i in range(5)}
    path = tmp_path / "m.gguf"
    written = write_gguf(
        path, KVS, [planned(n, a) for n, a in arrays.items()], threads=2, split_max_bytes=9000
    )
    first, second, _ = written.files
    assert all(
        hashlib.sha256(path.read_bytes()).hexdigest() == digest for path, digest in written.files.items()
    )
    assert [p.name for p in written.files] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    file = read_gguf(first)
    assert all(np.array_equal(file.dequantize(name), array) for name, array in arrays.items())
    assert file.kvs["split.count"] == 3
    with pytest.raises(BadInput, match="first part"):
        read_gguf(second)
    second.unlink()
    with pytest.raises(BadInput, match="is missing"):
        read_gguf(first)
    assert part_path(path, 1, 3) == second


def test_sizes_of_rows() -> None:
    assert row_bytes(Type.Q4_K, 512) == 288
    with pytest.raises(ValueError, match="whole number"):
        row_bytes(Type.Q4_K, 100)


def test_a_value_of_the_wrong_type_is_named() -> None:
    with pytest.raises(BadInput, match=r"some\.key"):
        header({"some.key": (-1, V.UINT32)}, [])
