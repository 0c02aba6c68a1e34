"""When is a step done? When its output was committed under the key that it has now.

A key is the sha256 of what decides the output: contents of the sources and text files, outputs of the steps
before it, the recipe and options, and the versions of the packages that do the work. It holds no time, so a
clock that jumps changes nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jobs.steps.step import Step
from quantize.file_hashes import user_hashes
from quantize.packages import version as installed_version


@cache
def version(distribution: str) -> str:
    return installed_version(distribution) or "absent"


def step_key(step: Step, run: Path, digests: Mapping[str, str]) -> str:
    """``digests``: step id -> digest of the output, of all in ``after``."""
    content = {
        "format": 1,
        "kind": step.kind,
        "inputs": step.inputs,
        "files": [[path.name, user_hashes().sha256(run / path)] for path in step.files],
        "sources": [source.digest_now() for source in step.sources],
        "after": [digests[made.id] for made in step.after],
        "packages": {name: version(name) for name in sorted(set(step.packages))},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
