"""Output that is complete or absent, without losing anything of the person's.

A folder is filled under a temporary name beside its place and put there in one step, which also takes out
what was there. Beside every such folder lies ``NAME.lock``, which its process holds (flock) as long as it
lives. That is how the next run on the same output knows what was abandoned by a kill or a crash, and removes
it; process ids would not do, since containers that share a volume share them. Where the file system has no
locks, nothing is taken for abandoned.
"""

import atexit
import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from quantize.disk_errors import disk_errors
from quantize.errors import BadInput
from quantize.into_place import old_of, remove
from quantize.locks import TOKEN, abandoned, new_locked

_TEMPORARY = "quantwright-[a-z]+-"


def claim(out: Path, force: bool, inputs: Iterable[Path], not_ours: Callable[[Path], str]) -> Path:
    """Where ``out`` lies (a link is followed), ready to be written: leftovers of dead runs are removed, and
    what one of them had moved aside is restored.

    ``inputs``: what is read. ``not_ours``: why a folder must not be replaced, or empty.

    Errors: BadInput where something lies there and ``force`` is not given, or does not allow to replace it;
    where its parent cannot be written; where it is a link to nothing.
    """
    real = follow(out)
    sweep_output(real)
    if os.path.lexists(real):
        if not force:
            raise BadInput(f"{out}: already exists; choose another -o, or pass --force to replace it")
        keep_inputs(out, inputs)
        if not real.is_dir():
            raise BadInput(f"{out}: is a file; choose another -o, or remove it")
        if os.path.ismount(real):
            raise BadInput(
                f"{out}: a file system is mounted there, so it cannot be replaced; choose a folder in it"
            )
        if any(real.iterdir()) and (why := not_ours(real)):
            raise BadInput(f"{out}: {why}; choose another -o, or move that away")
    _check_writable(out, real.parent)
    return real


def claim_run(out: Path) -> None:
    """For a folder to which files are added. Errors: BadInput where it is a file, a link to nothing, or
    cannot be written."""
    real = follow(out)
    if real.exists() and not real.is_dir():
        raise BadInput(f"{out}: is a file; give -o a folder")
    _check_writable(out, real)


def follow(out: Path) -> Path:
    """``out`` without links at its end. Errors: BadInput where there is one that leads to nothing."""
    out = out.absolute()
    if not out.is_symlink():
        return out
    real = Path(os.path.realpath(out))
    if not real.exists():
        raise BadInput(
            f"{out}: is a link to {real}, which does not exist; remove the link, or choose another -o"
        )
    return real


def _check_writable(out: Path, folder: Path) -> None:
    existing = next(p for p in [folder, *folder.parents] if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise BadInput(f"{out}: cannot be written ({existing} is not a writable folder); choose another -o")


def keep_inputs(out: Path, inputs: Iterable[Path]) -> None:
    """Errors: BadInput where ``out`` is one of ``inputs``, or a folder that holds one, by whatever name or
    link."""
    there = out.stat()
    for given in inputs:
        if given.exists():
            real = Path(os.path.realpath(given))
            for place in (real, *real.parents):
                if os.path.samestat(place.stat(), there):
                    what = f"is {given}" if place == real else f"holds {given}"
                    raise BadInput(f"{out}: {what}, an input that would be lost; choose another -o")


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` for ``put_in_place``; removed, with parents made for it, if that does not
    happen.

    Errors: StepFailed where the disk is full or cannot be written.
    """
    out = out.absolute()
    made = [p for p in [out.parent, *out.parent.parents] if not p.exists()]
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # a folder that allows no new folders, such as /proc
            raise BadInput(
                f"{out}: cannot be written ({made[-1].parent} does not allow new folders); choose another -o"
            ) from None
        with disk_errors(out), held_folder(out.parent, _prefix(out), mode=0o777, out=out) as stage:
            yield stage
    finally:
        if not out.exists():
            for parent in made:
                try:
                    parent.rmdir()
                except OSError:
                    break


def _prefix(out: Path) -> str:
    long = len(os.fsencode(out.name)) > 200  # of 255 that a name may take
    return f".{sha256(os.fsencode(out.name)).hexdigest()[:16] if long else out.name}.staging-"


@contextlib.contextmanager
def held_folder(parent: Path, prefix: str, mode: int = 0o700, out: Path | None = None) -> Iterator[Path]:
    """A new folder ``PREFIX...`` in ``parent``, removed afterwards; those of dead processes go first.
    ``out``: see ``sweep``."""
    sweep(parent, prefix, out)
    folder, lock = _hold(parent, prefix)
    try:
        folder.mkdir(mode)
        yield folder
    finally:
        remove(folder)
        _lock_of(folder).unlink(missing_ok=True)
        os.close(lock)


@contextlib.contextmanager
def temporary_folder(what: str, scratch: Path | None = None) -> Iterator[Path]:
    """A new folder ``quantwright-WHAT-...`` in ``scratch``, or among the temporary files, removed
    afterwards; those of dead processes go first, whatever they were for."""
    sweep_temporary(scratch)
    with held_folder(_temporary_place(scratch), f"quantwright-{what}-") as folder:
        yield folder


def held_until_exit(what: str, scratch: Path | None = None) -> Path:
    """``temporary_folder`` for as long as the process lives."""
    context = temporary_folder(what, scratch)
    atexit.register(context.__exit__, None, None, None)
    return context.__enter__()


def sweep_temporary(scratch: Path | None = None) -> None:
    """Remove every ``temporary_folder`` of this user's dead processes."""
    _sweep(_temporary_place(scratch), _TEMPORARY)


def _temporary_place(scratch: Path | None) -> Path:
    return scratch or Path(tempfile.gettempdir())


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _hold(parent: Path, prefix: str) -> tuple[Path, int]:
    """A name that is free in ``parent``, and the descriptor of its lock."""
    while True:
        folder = parent / f"{prefix}{os.getpid()}-{secrets.token_hex(6)}"
        held = new_locked(_lock_of(folder), 0o600)
        if held is not None:
            return folder, held


def sweep(parent: Path, prefix: str, out: Path | None = None) -> None:
    """Remove this user's folders ``PREFIX...`` in ``parent`` whose process is dead. ``out``: the place of the
    finished folder, to which goes back what a dead process had moved away and not replaced."""
    _sweep(parent, re.escape(prefix), out)


def _sweep(parent: Path, prefixes: str, out: Path | None = None) -> None:
    """``prefixes``: a regular expression."""
    pattern = re.compile(prefixes + TOKEN + r"\.lock")
    try:
        with os.scandir(parent) as entries:
            locks = [parent / entry.name for entry in entries if pattern.fullmatch(entry.name)]
    except OSError:
        return
    for lock in locks:
        with contextlib.suppress(OSError), abandoned(lock):
            folder = lock.with_suffix("")
            old = old_of(folder)
            if out is not None and old.exists() and not os.path.lexists(out):
                os.rename(old, out)
            for path in (folder, old):
                if os.path.lexists(path) and path.lstat().st_uid == os.getuid():
                    remove(path)
            lock.unlink(missing_ok=True)


def sweep_output(out: Path) -> None:
    """``sweep`` of what ``staging`` made for ``out``."""
    sweep(out.parent, _prefix(out), out)
