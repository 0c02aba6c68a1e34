"""Output that is whole or not there, for which nothing of the person's is lost.

A folder is filled under a name of its own beside its place and put there in one step; what was there comes
out by the same step. Beside every such folder lies ``NAME.lock``, which its process holds (flock) as long as
it lives. By that the next run on the same output knows what nobody works on any more, after a kill or a
crash, and removes it; process ids would not tell, since containers that share a volume share them. Where the
file system has no locks, nothing is taken for abandoned.
"""

import atexit
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from quantize.errors import BadInput, QuantwrightError, StepFailed

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # linux/fs.h
#: EPERM: what some containers answer to calls that they do not know
_NO_RENAMEAT2 = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)
_TOKEN = r"(?:\d+-)?[0-9a-f]{12}"  # and before it the id of the process, for whoever looks
_TEMPORARY = "quantwright-[a-z]+-"
#: what libraries say of a full disk in errors of their own: safetensors, and numpy's tofile (whose error has
#: no number)
_FULL = re.compile(r"No space left on device|Disk quota exceeded|\b\d+ requested and \d+ written")


# -- what lies at the output's place
# ---------------------------------------------------------------------------------------------


def claim(out: Path, force: bool, inputs: Iterable[Path], not_ours: Callable[[Path], str]) -> Path:
    """Where ``out`` lies (a link is followed), ready to be written: what dead runs left there is gone, and
    what one of them had taken away is back.

    ``inputs``: what is read. ``not_ours``: why a folder must not be replaced, or nothing.

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


# -- a folder of one's own
# -------------------------------------------------------------------------------------------------------


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
        except FileNotFoundError:  # a folder that takes no others, such as /proc
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
        _remove(folder)
        _lock_of(folder).unlink(missing_ok=True)
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
    """A name that nobody has in ``parent``, and the descriptor of its lock."""
    while True:
        folder = parent / f"{prefix}{os.getpid()}-{secrets.token_hex(6)}"
        held = _new_locked(_lock_of(folder), 0o600)
        if held is not None:
            return folder, held


def _new_locked(path: Path, mode: int) -> int | None:
    """A new file that this process holds; None where somebody who sweeps was there first."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError:
        return None
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if os.path.samestat(os.fstat(file), os.stat(path)):
            return file
    os.close(file)
    return None


def sweep(parent: Path, prefix: str, out: Path | None = None) -> None:
    """Remove this user's folders ``PREFIX...`` in ``parent`` whose process is dead. ``out``: the place of the
    finished folder, to which goes back what a dead process had moved away and not replaced."""
    _sweep(parent, re.escape(prefix), out)


def _sweep(parent: Path, prefixes: str, out: Path | None = None) -> None:
    """``prefixes``: a regular expression."""
    pattern = re.compile(prefixes + _TOKEN + r"\.lock")
    try:
        with os.scandir(parent) as entries:
            locks = [parent / entry.name for entry in entries if pattern.fullmatch(entry.name)]
    except OSError:
        return
    for lock in locks:
        with contextlib.suppress(OSError), _abandoned(lock):
            folder = lock.with_suffix("")
            old = _old_of(folder)
            if out is not None and old.exists() and not os.path.lexists(out):
                os.rename(old, out)
            for path in (folder, old):
                if os.path.lexists(path) and path.lstat().st_uid == os.getuid():
                    _remove(path)
            lock.unlink(missing_ok=True)


def sweep_output(out: Path) -> None:
    """``sweep`` of what ``staging`` made for ``out``."""
    sweep(out.parent, _prefix(out), out)


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[None]:
    """Holds the lock of a dead process. Errors: OSError where it lives, is another user's, or nobody can
    tell."""
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_uid != os.getuid():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


# -- into place
# ------------------------------------------------------------------------------------------------------------


def put_in_place(new: Path, out: Path, replace: bool) -> None:
    """Rename ``new`` to ``out`` in one step. With ``replace`` what lies there changes places with it, or
    where the system has no such step, is moved aside first; ``staging`` removes it.

    Errors: BadInput where something lies there and ``replace`` is not given; OSError.
    """
    for attempt in range(10):
        try:
            if not (replace and os.path.lexists(out)):
                _rename(new, out)
            elif not _exchange(new, out):
                _swap_in_two(new, out)
            break
        except FileNotFoundError:  # what was to be replaced went away meanwhile
            if not replace or not new.exists() or attempt == 9:
                raise
        except OSError as error:
            if error.errno not in _TAKEN or attempt == 9:
                raise
            if not replace:
                raise BadInput(
                    f"{out}: already exists: another process has written it "
                    "in the meantime; choose another -o, or pass --force"
                ) from None
    with contextlib.suppress(OSError):
        _flush_folder(out.parent)


def put_unless_there(new: Path, out: Path) -> None:
    """Rename ``new`` to ``out`` in one step; where something lies there, another was faster, and that stays.

    Errors: OSError.
    """
    try:
        _rename(new, out)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise


def put_file(new: Path, out: Path) -> None:
    """A finished file on the same disk to its place, whatever file lies there; parents are made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(new, out)


def write_json(path: Path, document: Any, indent: int | None = 1, allow_nan: bool = True) -> None:
    """A JSON file, whole or not there; parents are made. Errors: as ``whole_file``; ValueError for NaN where
    it is not allowed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=indent, allow_nan=allow_nan)
    with whole_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _rename(new: Path, out: Path) -> None:
    """Errors: OSError, one of ``_TAKEN`` where something lies there."""
    if not _renameat2(new, out, RENAME_NOREPLACE):
        if os.path.lexists(out):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out))
        os.rename(new, out)


def _exchange(new: Path, out: Path) -> bool:
    return _renameat2(new, out, RENAME_EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Whether the system can. Errors: OSError."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    here = -100  # AT_FDCWD
    if call(here, os.fsencode(source), here, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_RENAMEAT2:
        return False
    raise OSError(code, os.strerror(code), str(target))


def _old_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _swap_in_two(new: Path, out: Path) -> None:
    """A process that dies between the two renames leaves the old one where ``sweep`` finds it."""
    old = _old_of(new)
    os.rename(out, old)
    try:
        os.rename(new, out)
    except OSError:
        os.rename(old, out)
        raise
    _remove(old)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Path, replace: bool = True) -> Iterator[Path]:
    """A file beside ``path`` to be written, then put in its place; parts that dead processes left go first.

    Errors: BadInput where ``replace`` is False and ``path`` is there by then; StepFailed where the disk is
    full; OSError.
    """
    path = Path(os.path.realpath(path))
    prefix = f".{path.name[:100]}.part-"
    pattern = re.compile(re.escape(prefix) + _TOKEN)
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for name in [entry.name for entry in entries if pattern.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), _abandoned(path.with_name(name)):
                path.with_name(name).unlink()
    held = None
    while held is None:
        part = path.with_name(f"{prefix}{secrets.token_hex(6)}")
        held = _new_locked(part, 0o666)
    try:
        with disk_errors(path):
            yield part
            if replace:
                os.replace(part, path)
            else:
                put_in_place(part, path, replace=False)
    finally:
        part.unlink(missing_ok=True)
        os.close(held)


# -- what a disk or a right that lacks looks like
# --------------------------------------------------------------------------------


def disk_is_full(error: BaseException) -> bool:
    """Whether it, or what it came from, says so, in whatever library's words."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """What is raised within, by ``disk_error``."""
    try:
        yield
    except Exception as error:
        known = disk_error(error, out)
        if known is error:
            raise
        raise known from error


def disk_error(error: Exception, out: Path | str) -> Exception:
    """StepFailed where the disk under ``out`` is to blame, else ``error`` itself."""
    if isinstance(error, QuantwrightError):
        return error
    if disk_is_full(error):
        return StepFailed(
            f"{out}: the disk is full; free some space (`quantwright "
            "plan` says how much is needed) and run again"
        )
    if isinstance(error, OSError) and error.errno in (
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EFBIG,
        errno.EIO,
    ):
        return StepFailed(f"{error.filename or out}: cannot be read or written: {error.strerror}")
    return error
