"""When is a step done? When its output was committed under the key that it has now.

A key is the sha256 of what decides the output: contents of the sources and text files, outputs of the steps
before it, the recipe and options, and the versions of the packages that do the work. It holds no time, so a
clock that jumps changes nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from jobs.steps import Step
from quantize.artifact.file_hashes import FileHashes
from quantize.checkpoint.checkpoint import Checkpoint


@cache
def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def step_key(
    step: Step, run: Path, digests: Mapping[str, str], hashes: FileHashes, sources: Mapping[str, Checkpoint]
) -> str:
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
