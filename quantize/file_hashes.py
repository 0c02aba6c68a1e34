"""sha256 of files, remembered by what changes when a file does, so that a 100 GB checkpoint is read once."""

import contextlib
import json
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

from quantize.errors import StepFailed
from quantize.files import user_cache
from quantize.hashes import sha256_file
from quantize.into_place import write_json

MOST = 10_000  # files remembered
#: a file that changed so lately may change again under the same time stamp
SETTLED_NS = 2 * 10**9


class FileHashes:
    """``memory``: file in which they are kept, by size, device, inode and times of change; None keeps
    nothing. Several threads and processes may use it."""

    def __init__(self, memory: Path | None):
        self.memory = memory
        self._lock = threading.Lock()
        self._known = self._read()

    def sha256(self, path: Path) -> str:
        """Errors: OSError where the file is gone."""
        path = path.absolute()
        status = path.stat()
        signature = [status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        entry = self._known.get(str(path))
        if isinstance(entry, dict) and entry.get("signature") == signature:
            return str(entry["sha256"])
        settled = time.time_ns() - status.st_ctime_ns > SETTLED_NS
        digest = sha256_file(path)
        if settled:
            with self._lock:
                self._known[str(path)] = {"signature": signature, "sha256": digest}
                self._save()
        return digest

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self.memory.read_text(encoding="utf-8")) if self.memory else {}
        except (OSError, ValueError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}

    def _save(self) -> None:
        if self.memory is None:
            return
        merged = {**self._read(), **self._known}  # another process may have added to it
        self._known = dict(list(merged.items())[-MOST:])
        with contextlib.suppress(OSError, StepFailed):  # a full disk: the file is read again next time
            write_json(self.memory, self._known, indent=None)


@cache
def user_hashes() -> FileHashes:
    """Those of this user; forgotten with the process where no folder of the user's can be written."""
    try:
        return FileHashes(user_cache() / "hashes.json")
    except (OSError, RuntimeError):
        return FileHashes(None)
