"""Tensors written in any order make the files that ``write_folder`` makes."""

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from quantize.checkpoint.placed import PlacedFolder
from quantize.checkpoint.tensors import Entry, write_folder

ENTRIES = [
    Entry("a.weight", "F8_E4M3", (5, 7)), Entry("a.weight_scale", "BF16", (5, 1)),
    Entry("b", "F32", (16, 16)), Entry("empty", "F32", (0, 3)), Entry("c", "I64", (2,)),
]  # fmt: skip


def values(name: str) -> np.ndarray:
    entry = next(each for each in ENTRIES if each.name == name)
    return np.random.default_rng(len(name)).integers(0, 256, entry.size_bytes, np.uint8)


@pytest.mark.parametrize("hashing", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 600])
def test_the_same_files(tmp_path: Path, shard_bytes: int, hashing: bool) -> None:
    for name in ("whole", "placed"):
        (tmp_path / name).mkdir()
    total = write_folder(tmp_path / "whole", ENTRIES, values, shard_bytes)
    with PlacedFolder(tmp_path / "placed", ENTRIES, shard_bytes, hashing=hashing) as folder:
        assert folder.total_bytes == total
        assert sorted(folder.names) == sorted(entry.name for entry in ENTRIES)
        for entry in reversed(ENTRIES):
            folder.put(entry.name, values(entry.name))
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "placed").iterdir())
    assert len(files) == (1 if shard_bytes > 600 else 4)
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "placed" / name).read_bytes()
        digest = hashlib.sha256((tmp_path / "whole" / name).read_bytes()).hexdigest()
        assert folder.sha256.get(name, digest) == digest
    assert not folder.sha256 or hashing


def test_a_file_is_hashed_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, as they become whole; what was put further on counts when the gap before it is filled."""
    monkeypatch.setattr("quantize.hashes.READ_AT_ONCE", 1 << 16)
    rows = np.random.default_rng(0).integers(0, 256, (64, 10_007), np.uint8)
    entries = [Entry(name, "U8", rows.shape) for name in "abc"]
    with PlacedFolder(tmp_path, entries, hashing=True) as folder:
        folder.put("c", rows)
        for name in "ab":
            end = 0
            for row in rows:
                end = folder.put_part(name, row, end)
            assert end == rows.size
    (name,) = os.listdir(tmp_path)
    assert folder.sha256 == {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}


def test_what_stays_unfinished_has_no_hash(tmp_path: Path) -> None:
    folder = PlacedFolder(tmp_path, ENTRIES, hashing=True)
    with pytest.raises(KeyError), folder:
        folder.put("another", values("c"))
    assert folder.sha256 == {}


def test_what_the_disk_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one call that hears of it: a later one may be told that all is well."""

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with PlacedFolder(tmp_path, ENTRIES, hashing=True) as folder:
            for entry in ENTRIES:
                folder.put(entry.name, values(entry.name))

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match="No space"):
        write()


def test_a_layer_lies_together(tmp_path: Path) -> None:
    """Whole lines in the order of their names, whatever their types; then what is not, by width."""
    kinds = {"1.a": ("U8", 64), "1.b": ("BF16", 32), "1.c": ("I64", 2), "2.a": ("U8", 128), "2.b": ("F16", 3)}
    entries = [Entry(name, kind, (size,)) for name, (kind, size) in kinds.items()]
    with PlacedFolder(tmp_path, entries) as folder:
        for entry in entries:
            folder.put(entry.name, np.zeros(entry.size_bytes, np.uint8))
    assert folder.names == ["1.a", "1.b", "2.a", "1.c", "2.b"]


def test_what_is_missing_or_of_another_size_is_noticed(tmp_path: Path) -> None:
    def write(entries: list[Entry], cut: int) -> None:
        with PlacedFolder(tmp_path, ENTRIES) as folder:
            for entry in entries:
                folder.put(entry.name, values(entry.name)[cut:])

    with pytest.raises(AssertionError, match="c was not written"):
        write(ENTRIES[:-1], 0)
    with pytest.raises(AssertionError, match="32 bytes given for 35"):
        write(ENTRIES, 3)
