"""Tensors written in any order make the files that ``write_folder`` makes."""

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


@pytest.mark.parametrize("shard_bytes", [10**9, 600])
def test_the_same_files(tmp_path: Path, shard_bytes: int) -> None:
    for name in ("whole", "placed"):
        (tmp_path / name).mkdir()
    total = write_folder(tmp_path / "whole", ENTRIES, values, shard_bytes)
    with PlacedFolder(tmp_path / "placed", ENTRIES, shard_bytes) as folder:
        assert folder.total_bytes == total
        for entry in reversed(ENTRIES):
            folder.put(entry.name, values(entry.name))
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "placed").iterdir())
    assert len(files) == (1 if shard_bytes > 600 else 4)
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "placed" / name).read_bytes()


def test_what_is_missing_or_of_another_size_is_noticed(tmp_path: Path) -> None:
    def write(entries: list[Entry], cut: int) -> None:
        with PlacedFolder(tmp_path, ENTRIES) as folder:
            for entry in entries:
                folder.put(entry.name, values(entry.name)[cut:])

    with pytest.raises(AssertionError, match="c was not written"):
        write(ENTRIES[:-1], 0)
    with pytest.raises(AssertionError, match="32 bytes given for 35"):
        write(ENTRIES, 3)
