"""When is a step done? When its output was committed under the key that it has now.

A key is the sha256 of what decides the output: contents of the sources and text files, outputs of the steps before it, the
recipe and options, and the versions of the packages that do the work. It holds no time, so a clock that jumps changes nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from quantize.checkpoint import Checkpoint, sha256_file
from quantize.jobs.steps import Step
from quantize.staging import whole_file


@cache
def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def step_key(step: Step, run: Path, digests: Mapping[str, str], hashes: "FileHashes", sources: Mapping[str, Checkpoint]) -> str:
    """``digests``: outputs of the steps named in ``after``."""
    content = {
        "format": 1,
        "kind": step.kind,
        "inputs": step.inputs,
        "files": [[path.name, hashes.sha256(run / path)] for path in step.files],
        "sources": [hashes.checkpoint(sources[name]) for name in step.sources],
        "after": [digests[name] for name in step.after],
        "packages": {name: version(name) for name in sorted(set(step.packages))},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class FileHashes:
    """sha256 of files, remembered by size, inode and time of change, so that a 100 GB checkpoint is read once."""

    def __init__(self, memory: Path):
        self.memory = memory
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            self._known: dict[str, Any] = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            self._known = {}

    def sha256(self, path: Path) -> str:
        """Errors: OSError where the file is gone."""
        path = path.absolute()
        status = path.stat()
        signature = [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        entry = self._known.get(str(path))
        if isinstance(entry, dict) and entry.get("signature") == signature:
            return str(entry["sha256"])
        digest = sha256_file(path)
        self._known[str(path)] = {"signature": signature, "sha256": digest}
        self._save()
        return digest

    def checkpoint(self, checkpoint: Checkpoint) -> str:
        """Its digest, as ``Checkpoint.digest`` defines it."""
        whole = hashlib.sha256()
        for path in checkpoint.files():
            whole.update(f"{path.name} {self.sha256(path)}\n".encode())
        return whole.hexdigest()

    def _save(self) -> None:
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.memory) as part:
            part.write_text(json.dumps(self._known), encoding="utf-8")
