"""Objects under a URL that fsspec can open, such as ``s3://bucket/prefix``: what a shared cache and Ray's
nodes need of it.

An object appears whole or not at all, and nothing can be renamed or locked. Whatever goes wrong is one line.
"""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from quantize.errors import BadInput, StepFailed, first_line
from quantize.packages import install_command

Found = TypeVar("Found")

#: Written on first use: only then is it known whether the bucket is there and may be written.
MARKER = "quantwright.txt"
MARKER_TEXT = (
    b"Artifacts and logits of quantwright jobs (--cache, --store). May be deleted while no job is running.\n"
)
LOCAL_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class BucketError(StepFailed):
    """``missing``: there is no such object; ``denied``: it may not be done."""

    def __init__(self, message: str, cause: Exception | None = None):
        super().__init__(message)
        self.missing = isinstance(cause, FileNotFoundError)
        self.denied = isinstance(cause, PermissionError)


def is_url(place: str) -> bool:
    return "://" in place


class Bucket:
    """``option``: what the person gave the URL to. Names of objects are relative to it.

    Errors: BadInput where it cannot be used: no such bucket, no credentials, no server, a missing package.
    """

    def __init__(self, url: str, option: str):
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        protocol = url.partition("://")[0]
        if not is_url(url) or protocol == "memory":
            raise BadInput(
                f"{option} {url}: expected a URL that all machines can reach, such as s3://bucket/prefix"
            )
        if not url.partition("://")[2].strip("/") and protocol not in ("file", "local"):
            raise BadInput(
                f"{option} {url}: cannot be used (it names no bucket "
                "or host); give a URL such as s3://bucket/prefix"
            )
        try:
            self._files, root = url_to_fs(
                url, **({"auto_mkdir": True} if protocol in ("file", "local") else {})
            )
        except ImportError as error:
            if protocol in ("s3", "s3a"):
                raise BadInput(f"{option} {url}: needs s3fs; install with: {install_command('s3')}") from None
            raise BadInput(f"{option} {url}: {first_line(error)}") from None
        except Exception as error:  # of whatever library speaks the protocol: of ftp:// it connects at once
            raise BadInput(
                f"{option} {url}: {first_line(error)}; give a URL such as s3://bucket/prefix"
            ) from None
        self._root = str(root).rstrip("/")
        try:
            if self.read(MARKER) is None:
                self.write(MARKER, MARKER_TEXT)
        except (BucketError, OSError) as error:
            what = str(error).removeprefix(f"{self.url}: ")
            hint = (
                " (AWS_ACCESS_KEY_ID and the like) and AWS_ENDPOINT_URL" if protocol in ("s3", "s3a") else ""
            )
            raise BadInput(
                f"{option} {url}: cannot be used ({what}); check its name and your credentials{hint}"
            ) from None

    def read(self, name: str) -> bytes | None:
        """None where there is no such object. Errors: BucketError, as of all that follow."""
        return _unless_missing(lambda: self._do(self._files.cat_file, self._path(name)))

    def size_bytes(self, name: str) -> int | None:
        return _unless_missing(lambda: int(self._do(self._files.info, self._path(name))["size"]))

    def write(self, name: str, data: bytes) -> None:
        self._do(self._files.pipe_file, self._path(name), data)

    def put(self, path: Path, name: str) -> None:
        self._do(self._files.put_file, str(path), self._path(name))

    def get(self, name: str, path: Path) -> None:
        """Errors: BucketError; OSError where ``path`` cannot be written."""
        self._do(self._files.get_file, self._path(name), str(path))

    def move(self, name: str, other: str) -> None:
        self._do(self._files.copy, self._path(name), self._path(other))
        self.delete(name)

    def delete(self, name: str) -> None:
        self._do(self._files.rm_file, self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _do(self, what: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return what(*arguments)
        except (
            Exception
        ) as error:  # of whatever library speaks the protocol: botocore's and aiohttp's are not OSErrors
            if isinstance(error, OSError) and error.errno in LOCAL_TROUBLE:
                raise
            raise BucketError(f"{self.url}: {first_line(error)}", error) from error


def _unless_missing(what: Callable[[], Found]) -> Found | None:
    try:
        return what()
    except BucketError as error:
        if error.missing:
            return None
        raise
