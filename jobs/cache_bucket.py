"""The shared cache under a URL. An object store has neither rename nor locks.

An entry is there once its SHA256SUMS is, which is written last. Files lie under names that hold a part of
their sha256, so two runs that store one key at the same time never mix; the sums that came last count. Runs
never wait for each other: both work. What is fetched is hashed; an entry that does not match is moved to
``quarantine`` and made again. A store that cannot be reached any more costs the cache and nothing else: the
run goes on without it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from jobs.bucket import Bucket, BucketError, is_url
from jobs.cache import SUMS, Damaged, SharedCache, clear, format_sums, parse_sums
from quantize.hashes import sha256_file, sha256_files


class BucketCache:
    """Has the methods of ``SharedCache``; ``claim`` always succeeds."""

    def __init__(self, bucket: Bucket, say: Callable[[str], None]):
        self.bucket, self.say = bucket, say
        self._lost = False

    def entry(self, key: str) -> str:
        return f"steps/{key[:2]}/{key}"

    def claim(self, key: str) -> bool:
        return True

    def held(self, key: str) -> list[int]:
        return []

    def release(self, key: str) -> None:
        pass

    def fetch(self, key: str, into: Path) -> bool:
        """Copy the entry's files into the folder ``into``; False where there is none, or it is damaged, or
        out of reach (``into`` is then empty).

        Errors: OSError where ``into`` cannot be written.
        """
        if self._lost:
            return False
        entry, sums = self.entry(key), {}
        try:
            listed = self.bucket.read(f"{entry}/{SUMS}")
            if listed is None:
                return False
            try:
                sums = _placed(parse_sums(listed))
                for name, digest in sums.items():
                    self._fetch_file(
                        f"{entry}/{name}", digest, into / PurePosixPath(name).relative_to(_first(name))
                    )
                return True
            except Damaged as damage:
                clear(into)
                self._put_aside(key, sums, str(damage))
        except BucketError as error:
            clear(into)
            self._lose(error)
        return False

    def _fetch_file(self, name: str, digest: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.bucket.get(name, target)
        except BucketError as error:
            if error.missing:
                raise Damaged(f"{target.name} is missing") from None
            raise
        if sha256_file(target) != digest:
            raise Damaged(f"{target.name} does not match its sha256")

    def _put_aside(self, key: str, sums: Mapping[str, str], why: str) -> None:
        entry, number = self.entry(key), 1
        try:
            while self.bucket.size_bytes(f"quarantine/{key}.{number}/{SUMS}") is not None:
                number += 1
            for name in (SUMS, *sums):  # the sums first: without them the entry is not there
                try:
                    self.bucket.move(f"{entry}/{name}", f"quarantine/{key}.{number}/{name}")
                except BucketError as error:
                    if not error.missing:
                        raise
            self.say(f"cache: {entry} is damaged ({why}); moved to quarantine/{key}.{number} and made again")
        except BucketError as error:
            self.say(
                f"cache: {entry} is damaged ({why}) and cannot be moved ({error}); made again for this run"
            )

    def store(self, key: str, files: Mapping[str, Path]) -> None:
        """``files``: name in the entry -> file. What hinders it is said, and costs the entry only."""
        entry = self.entry(key)
        if self._lost:
            return
        try:
            if self.bucket.size_bytes(f"{entry}/{SUMS}") is not None:  # another run was faster
                return
            digests = sha256_files(files.values())
            sums = {f"{digests[path][:16]}/{name}": digests[path] for name, path in files.items()}
            for name, path in zip(sums, files.values(), strict=True):
                self.bucket.put(path, f"{entry}/{name}")
            self.bucket.write(f"{entry}/{SUMS}", format_sums(sums))
        except BucketError as error:
            if not error.denied:
                self._lose(error)
            else:
                self.say(f"cache: {entry} cannot be kept ({error})")
        except OSError as error:
            self.say(f"cache: {entry} cannot be kept ({error.strerror})")

    def _lose(self, error: BucketError) -> None:
        self._lost = True
        self.say(f"cache: {error}; this run goes on without it")


def open_cache(place: str, say: Callable[[str], None]) -> SharedCache | BucketCache:
    """``place``: a folder or a URL. Errors: BadInput where it cannot be used."""
    if is_url(place) and not place.startswith("file://"):
        return BucketCache(Bucket(place, "--cache"), say)
    return SharedCache(Path(place.removeprefix("file://")), say)


def _first(name: str) -> str:
    return PurePosixPath(name).parts[0]


def _placed(sums: dict[str, str]) -> dict[str, str]:
    """Errors: Damaged where a name has no folder of its sha256."""
    if not all(
        _first(name) == digest[:16] and len(PurePosixPath(name).parts) > 1 for name, digest in sums.items()
    ):
        raise Damaged(f"{SUMS} is malformed")
    return sums
