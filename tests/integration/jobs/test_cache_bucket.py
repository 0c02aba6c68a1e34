"""The shared cache over S3 gives back what was put there or nothing; a server that is gone costs the cache
and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cached_step import CONTENT, KEY, fetch

from jobs.cache import SUMS
from jobs.cache_bucket import BucketCache, open_cache
from quantize.errors import BadInput

ENTRY = f"bucket/shared/steps/ab/{KEY}"
URL = "s3://bucket/shared"


@pytest.fixture
def cache(s3: Any, said: list[str]) -> BucketCache:
    made = open_cache(URL, said.append)
    assert isinstance(made, BucketCache)
    return made


def test_what_was_stored_comes_back(
    cache: BucketCache, files: dict[str, Path], tmp_path: Path, said: list[str]
) -> None:
    assert fetch(cache, tmp_path / "before") is None
    cache.store(KEY, files)
    cache.store(KEY, files)
    assert fetch(cache, tmp_path / "after") == CONTENT
    assert said == []


def test_sha256sum_checks_an_entry(
    cache: BucketCache, s3: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    cache.store(KEY, files)
    s3.files().get(f"{ENTRY}/", str(tmp_path / "entry"), recursive=True)
    subprocess.run(["sha256sum", "-c", SUMS], cwd=tmp_path / "entry", check=True, stdout=subprocess.DEVNULL)


def find(s3: Any, name: str) -> str:
    (found,) = [path for path in s3.files().find(ENTRY) if path.endswith(name)]
    return str(found)


def rewrite(s3: Any, name: str, change: Callable[[bytes], bytes]) -> None:
    place = find(s3, name)
    s3.files().pipe_file(place, change(s3.files().cat_file(place)))


DAMAGES: dict[str, Callable[[Any], object]] = {
    "a bit flipped": lambda s3: rewrite(
        s3, "a.bin", lambda data: data[:77_777] + bytes([data[77_777] ^ 1]) + data[77_778:]
    ),
    "truncated": lambda s3: rewrite(s3, "a.bin", lambda data: b""),
    "a file gone": lambda s3: s3.files().rm_file(find(s3, "b.txt")),
    "sums cut off": lambda s3: rewrite(s3, SUMS, lambda data: data[:70]),
    "sums of nothing": lambda s3: rewrite(s3, SUMS, lambda data: b""),
    "sums that are not text": lambda s3: rewrite(s3, SUMS, lambda data: b"\xff\xfe"),
    "a way out": lambda s3: rewrite(
        s3, SUMS, lambda data: b"0" * 64 + b"  0000000000000000/../../etc/passwd\n"
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_put_aside_and_made_anew(
    cache: BucketCache, s3: Any, files: dict[str, Path], tmp_path: Path, said: list[str], damage: str
) -> None:
    cache.store(KEY, files)
    DAMAGES[damage](s3)
    assert fetch(cache, tmp_path / "first") is None
    assert "is damaged" in said[0]
    assert "moved to" in said[0]
    assert s3.files().exists(f"bucket/shared/quarantine/{KEY}.1/{SUMS}")
    assert fetch(cache, tmp_path / "again") is None
    assert len(said) == 1
    cache.store(KEY, files)
    assert fetch(cache, tmp_path / "second") == CONTENT


def test_an_entry_without_sums_is_not_there_yet(
    cache: BucketCache, s3: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    """A run that died while it stored: the next one completes the entry."""
    cache.store(KEY, files)
    s3.files().rm_file(find(s3, SUMS))
    assert fetch(cache, tmp_path / "before") is None
    cache.store(KEY, files)
    assert fetch(cache, tmp_path / "after") == CONTENT


def test_two_runs_whose_manifests_differ_do_not_mix(
    cache: BucketCache, s3: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    """The files of both are there, the sums of one came last."""
    cache.store(KEY, files)
    s3.files().rm_file(find(s3, SUMS))
    (tmp_path / "other.txt").write_text("another source")
    cache.store(KEY, {**files, "deep/b.txt": tmp_path / "other.txt"})
    assert fetch(cache, tmp_path / "after") == {**CONTENT, "deep/b.txt": b"another source"}


#: One of several processes: stores the files under ``made`` and fetches them, five times.
WORKER = """
import sys
from pathlib import Path
from jobs.cache_bucket import open_cache
url, key, made, into = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
files = {str(path.relative_to(made)): path for path in made.rglob("*") if path.is_file()}
cache = open_cache(url, print)
for turn in range(5):
    cache.store(key, files)
    out = into / str(turn)
    out.mkdir(parents=True)
    assert cache.fetch(key, out)
    assert {name: (out / name).read_bytes() for name in files} == {
        name: path.read_bytes() for name, path in files.items()
    }
"""


def test_many_at_once(s3: Any, files: dict[str, Path], tmp_path: Path) -> None:
    made = files["a.bin"].parent
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, URL, KEY, str(made), str(tmp_path / f"worker{number}")]
        )
        for number in range(3)
    ]
    assert [worker.wait(120) for worker in workers] == [0] * 3
    assert not s3.files().exists("bucket/shared/quarantine")


@pytest.mark.parametrize("act", ["fetch", "store"])
def test_a_server_that_is_gone_costs_the_cache_only(
    cache: BucketCache, s3: Any, files: dict[str, Path], tmp_path: Path, said: list[str], act: str
) -> None:
    cache.store(KEY, files)
    s3.stop()
    if act == "fetch":
        assert fetch(cache, tmp_path / "first") is None
    else:
        cache.store("cd" + KEY[2:], files)
    assert len(said) == 1
    assert "this run goes on without it" in said[0]
    assert "Could not connect" in said[0]
    assert fetch(cache, tmp_path / "second") is None  # at once: nobody knocks again
    cache.store(KEY, files)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://nobucket/x", "The specified bucket does not exist"),
        ("s3://", "cannot be used"),
        ("memory://x", "such as s3://bucket/prefix"),
        ("nope://b/x", "Protocol not known"),
        ("gs://b/x", "Please install gcsfs"),
    ],
)
def test_a_url_that_cannot_be_used_is_said_in_one_line(s3: Any, place: str, expected: str) -> None:
    with pytest.raises(BadInput, match=expected) as caught:
        open_cache(place, print)
    assert "\n" not in str(caught.value)
    assert place in str(caught.value)


def test_without_credentials(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3.files()
    with pytest.raises(BadInput, match=r"Unable to locate credentials.*check its name and your credentials"):
        open_cache(URL, print)


def test_without_s3fs_the_extra_is_named(tmp_path: Path) -> None:
    """An s3fs that cannot be imported, as one that is not installed."""
    (tmp_path / "s3fs.py").write_text("raise ImportError('No module named s3fs')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from jobs.cache_bucket import open_cache\nfrom quantize.errors import BadInput\n"
        "try: open_cache('s3://bucket/x', print)\nexcept BadInput as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'s3fs>=" in done.stdout


def test_a_file_url_is_a_folder(tmp_path: Path, files: dict[str, Path]) -> None:
    cache = open_cache(f"file://{tmp_path}/cache", print)
    cache.store(KEY, files)
    assert (tmp_path / "cache" / "steps" / "ab" / KEY / "a.bin").is_file()
    assert fetch(cache, tmp_path / "after") == CONTENT
