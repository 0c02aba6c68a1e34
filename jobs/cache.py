"""A folder that several runs, users and machines share: what one has made under a key, the others copy
instead of making it.

An entry is a folder of files and their SHA256SUMS (``sha256sum -c`` checks it), renamed into place when
complete and never changed after. What is copied out is hashed on the way: an entry that does not match is
moved to ``quarantine`` and made again. A lock of each key lets the second of two runs wait for the first;
where the file system has no locks both work, and one of two equal entries stays.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from quantize.errors import BadInput
from quantize.into_place import put_unless_there
from quantize.locks import NO_LOCKS
from quantize.staging import held_folder

SUMS = "SHA256SUMS"
BLOCK_BYTES = 4 << 20


class Damaged(Exception):
    """An entry that is not what was put there."""


class SharedCache:
    """``root`` is made if need be. Errors: BadInput where it cannot be."""

    def __init__(self, root: Path, say: Callable[[str], None]):
        self.root, self.say = root.absolute(), say
        self._locks: dict[str, int] = {}
        try:
            for name in ("steps", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"cache {root}: cannot be created ({error.strerror}); choose another --cache"
            ) from None

    def entry(self, key: str) -> Path:
        return self.root / "steps" / key[:2] / key

    # -- one maker at a time

    def claim(self, key: str) -> bool:
        """Whether this run may make the key's entry, until ``release``; False while another run is at it."""
        if key in self._locks:
            return True
        try:
            file = os.open(self.root / "locks" / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:  # a cache that may be read only: nothing to wait for
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            return error.errno in NO_LOCKS
        self._locks[key] = file
        return True

    def held(self, key: str) -> list[int]:
        """The lock's descriptor, for the step's process to inherit: it must outlive a runner that is
        killed."""
        return [self._locks[key]] if key in self._locks else []

    def release(self, key: str) -> None:
        file = self._locks.pop(key, None)
        if file is not None:
            os.close(file)

    # -- entries

    def fetch(self, key: str, into: Path) -> bool:
        """Copy the entry's files into the folder ``into``; False where there is none, or it is damaged
        (``into`` is then empty).

        Errors: OSError where ``into`` cannot be written.
        """
        entry = self.entry(key)
        if not entry.is_dir():
            return False
        try:
            for name, digest in _read_sums(entry).items():
                target = into / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if _copy(entry / name, target) != digest:
                    raise Damaged(f"{name} does not match its sha256")
            return True
        except Damaged as damage:
            clear(into)
            self._put_aside(entry, str(damage))
            return False

    def _put_aside(self, entry: Path, why: str) -> None:
        folder = self.root / "quarantine"
        try:
            folder.mkdir(exist_ok=True)
            number = 1
            while (target := folder / f"{entry.name}.{number}").exists():
                number += 1
            entry.rename(target)
            self.say(f"cache: {entry} is damaged ({why}); moved to {target} and made again")
        except OSError as error:
            self.say(
                f"cache: {entry} is damaged ({why}) and cannot be "
                f"moved ({error.strerror}); made again for this run"
            )

    def store(self, key: str, files: Mapping[str, Path]) -> None:
        """``files``: name in the entry -> file. What hinders it is said, and costs the entry only."""
        entry = self.entry(key)
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with held_folder(entry.parent, f".{key[:16]}.staging-", mode=0o777) as stage:
                sums = {}
                for name, path in files.items():
                    target = stage / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    sums[name] = _copy(path, target)
                (stage / SUMS).write_bytes(format_sums(sums))
                for path in stage.rglob("*"):
                    if path.is_file():
                        with open(path, "rb") as file:
                            os.fsync(file.fileno())
                put_unless_there(stage, entry)
        except OSError as error:
            self.say(f"cache: {entry} cannot be kept ({error.strerror})")


def clear(folder: Path) -> None:
    """Delete what is in it."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def format_sums(sums: Mapping[str, str]) -> bytes:
    """name -> sha256, as ``sha256sum -c`` reads it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()


def parse_sums(text: bytes) -> dict[str, str]:
    """Errors: Damaged, also where a name leads out of the entry."""
    try:
        lines = text.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise Damaged(f"no readable {SUMS}") from None
    sums = {}
    for line in lines:
        digest, separator, name = line.partition("  ")
        if len(digest) != 64 or not separator or Path(name).is_absolute() or ".." in Path(name).parts:
            raise Damaged(f"{SUMS} is malformed")
        sums[name] = digest
    if not sums:
        raise Damaged(f"{SUMS} is empty")
    return sums


def _read_sums(entry: Path) -> dict[str, str]:
    """Errors: Damaged."""
    try:
        sums = parse_sums((entry / SUMS).read_bytes())
    except OSError:
        raise Damaged(f"no readable {SUMS}") from None
    here = {str(path.relative_to(entry)) for path in entry.rglob("*") if path.is_file()} - {SUMS}
    if here != set(sums):
        raise Damaged(f"its files are not those of {SUMS}")
    return sums


def _copy(source: Path, target: Path) -> str:
    """sha256 of what was copied. Errors: Damaged where the source cannot be read, OSError where the target
    cannot be written."""
    digest = hashlib.sha256()
    with open(target, "wb") as out:
        try:
            file = open(source, "rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise Damaged(f"{source.name}: {error.strerror}") from None
        with file:
            while True:
                try:
                    block = file.read(BLOCK_BYTES)
                except OSError as error:
                    raise Damaged(f"{source.name}: {error.strerror}") from None
                if not block:
                    return digest.hexdigest()
                digest.update(block)
                out.write(block)
