"""Finished files and folders go to their places in one step: whole, or not there."""

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantize.disk_errors import disk_errors
from quantize.errors import BadInput
from quantize.locks import TOKEN, abandoned, new_locked

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # linux/fs.h
#: EPERM: what some containers answer to calls that they do not know
_NO_RENAMEAT2 = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


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


@contextlib.contextmanager
def whole_file(path: Path, replace: bool = True) -> Iterator[Path]:
    """A file beside ``path`` to be written, then put in its place; parts that dead processes left go first.

    Errors: BadInput where ``replace`` is False and ``path`` is there by then; StepFailed where the disk is
    full; OSError.
    """
    path = Path(os.path.realpath(path))
    prefix = f".{path.name[:100]}.part-"
    pattern = re.compile(re.escape(prefix) + TOKEN)
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for name in [entry.name for entry in entries if pattern.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), abandoned(path.with_name(name)):
                path.with_name(name).unlink()
    held = None
    while held is None:
        part = path.with_name(f"{prefix}{secrets.token_hex(6)}")
        held = new_locked(part, 0o666)
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


def old_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _swap_in_two(new: Path, out: Path) -> None:
    """A process that dies between the two renames leaves the old one where ``sweep`` finds it."""
    old = old_of(new)
    os.rename(out, old)
    try:
        os.rename(new, out)
    except OSError:
        os.rename(old, out)
        raise
    remove(old)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
