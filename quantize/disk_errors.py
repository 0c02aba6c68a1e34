"""What a disk that is full, or a right that lacks, looks like."""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from quantize.errors import QuantwrightError, StepFailed

#: what libraries' own errors say about a full disk: safetensors, and numpy's tofile (whose error has no
#: number)
_FULL = re.compile(r"No space left on device|Disk quota exceeded|\b\d+ requested and \d+ written")


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
