"""SHA-256 of files."""

import hashlib
from pathlib import Path

import pytest

from quantize import hashes
from quantize.hashes import sha256_file, sha256_files, update_from


@pytest.mark.parametrize("size", [0, 1, 100_000, 1 << 17])
def test_files_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(hashes, "READ_AT_ONCE", 1 << 16)
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    want = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_file(path) == want
    assert sha256_files([path, path]) == {path: want}


def test_parts_that_begin_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 600)
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        for start, end in ((0, 5), (5, 5), (5, 4097), (4097, 153_600), (153_600, None)):
            assert update_from(whole, file.fileno(), start, end) == (end or 153_600)
    assert whole.hexdigest() == sha256_file(path)
