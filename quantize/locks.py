"""Files that a process holds as long as it lives: by them the next run knows what nobody works on."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
TOKEN = r"(?:\d+-)?[0-9a-f]{12}"  # and before it the id of the process, for whoever looks


def new_locked(path: Path, mode: int) -> int | None:
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


@contextlib.contextmanager
def abandoned(path: Path) -> Iterator[None]:
    """Holds the lock of a dead process. Errors: OSError where it lives, is another user's, or this is
    unknown."""
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_uid != os.getuid():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether this process alone holds ``path``, made where it is missing, until the end. Where the file
    system has no locks, it does not know and says no."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError as error:
            if error.errno not in (*NO_LOCKS, errno.EWOULDBLOCK, errno.EACCES):
                raise
            held = False
        yield held
    finally:
        os.close(file)


@contextlib.contextmanager
def waited(path: Path, told: Callable[[], None], shared: bool = False) -> Iterator[None]:
    """Holds ``path``, made where it is missing, until the end: alone, or ``shared`` with others that share.
    Waits for who holds it otherwise, after ``told`` has said so. Who holds it alone may remove the file.
    Where the file system has no locks, nobody waits."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                told()
                fcntl.flock(file, kind)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            same = False
            with contextlib.suppress(FileNotFoundError):  # else it was removed while we waited
                same = os.path.samestat(os.fstat(file), os.stat(path))
            if same:
                yield
                return
        finally:
            os.close(file)
