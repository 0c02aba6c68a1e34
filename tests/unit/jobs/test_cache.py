"""The shared cache gives back what was put there or nothing, whoever else is at it and whatever happened to
the disk."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from cached_step import CONTENT, KEY, fetch

from jobs.cache import SUMS, SharedCache
from quantize.errors import BadInput


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> SharedCache:
    return SharedCache(tmp_path / "cache", said.append)


def test_what_was_stored_comes_back(cache: SharedCache, files: dict[str, Path], tmp_path: Path) -> None:
    assert fetch(cache, tmp_path / "before") is None
    cache.store(KEY, files)
    cache.store(KEY, files)
    assert fetch(cache, tmp_path / "after") == CONTENT
    assert [path.name for path in (cache.root / "steps" / "ab").iterdir()] == [KEY]


def flip(entry: Path) -> None:
    data = bytearray((entry / "a.bin").read_bytes())
    data[77_777] ^= 1
    (entry / "a.bin").write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit flipped": flip,
    "truncated": lambda entry: (entry / "a.bin").write_bytes(b""),
    "a file gone": lambda entry: (entry / "deep" / "b.txt").unlink(),
    "a file too many": lambda entry: (entry / "c.txt").write_text("c"),
    "no sums": lambda entry: (entry / SUMS).unlink(),
    "sums cut off": lambda entry: (entry / SUMS).write_text((entry / SUMS).read_text()[:70]),
    "sums that are not text": lambda entry: (entry / SUMS).write_bytes(b"\xff\xfe"),
    "a way out": lambda entry: (entry / SUMS).write_text(64 * "0" + "  ../../../etc/passwd\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_put_aside_and_made_anew(
    cache: SharedCache, files: dict[str, Path], tmp_path: Path, said: list[str], damage: str
) -> None:
    cache.store(KEY, files)
    DAMAGES[damage](cache.entry(KEY))
    assert fetch(cache, tmp_path / "first") is None
    assert "is damaged" in said[0]
    assert "moved to" in said[0]
    assert (cache.root / "quarantine" / f"{KEY}.1").is_dir()
    cache.store(KEY, files)
    assert fetch(cache, tmp_path / "second") == CONTENT


def _work(root: Path, files: dict[str, Path], into: Path, number: int) -> None:
    cache = SharedCache(root, print)
    for turn in range(20):
        cache.store(KEY, files)
        assert fetch(cache, into / f"{number}-{turn}") == CONTENT


def test_many_at_once(cache: SharedCache, files: dict[str, Path], tmp_path: Path) -> None:
    """Stores and fetches of one key, without anybody's lock: never a half entry, never a complaint."""
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_work, args=(cache.root, files, tmp_path, number)) for number in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert not (cache.root / "quarantine").exists()
    assert [path.name for path in (cache.root / "steps" / "ab").iterdir()] == [KEY]


def test_one_maker_of_a_key(cache: SharedCache) -> None:
    other = SharedCache(cache.root, print)
    assert cache.claim(KEY)
    assert cache.claim(KEY)
    assert not other.claim(KEY)
    assert other.claim("cd" + KEY[2:])
    cache.release(KEY)
    assert other.claim(KEY)


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="choose another --cache"):
        SharedCache(tmp_path / "file" / "cache", print)


def test_a_cache_that_cannot_take_more_costs_the_entry_only(
    cache: SharedCache, files: dict[str, Path], said: list[str]
) -> None:
    (cache.root / "steps" / "ab").write_text("in the way")
    cache.store(KEY, files)
    assert "cannot be kept" in said[0]
