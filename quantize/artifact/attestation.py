"""Whose word an artifact's verification is: this user's own, or that of whoever made it.

A manifest is text that anybody can write. What this user's installation has verified, it notes in a folder of
the user's: the digest of the artifact and what was checked. A manifest that says something else of the same
bytes is not vouched for.
"""

import contextlib
import hashlib
from pathlib import Path

from quantize.artifact.artifact import Artifact
from quantize.files import user_data


def attest(artifact: Artifact) -> None:
    """Note that it was verified here. Where no folder of the user's can be written, nothing is noted."""
    with contextlib.suppress(OSError, RuntimeError):
        note = _note(artifact)
        note.parent.mkdir(exist_ok=True)
        note.write_text(f"{artifact.digest} {artifact.verified}\n", encoding="ascii")


def verified_here(artifact: Artifact) -> bool:
    """Whether its files (assumed to match the manifest) and verification are as ``attest`` noted them."""
    try:
        return artifact.verified != "none" and _note(artifact).is_file()
    except (OSError, RuntimeError):
        return False


def _note(artifact: Artifact) -> Path:
    said = artifact.manifest.verification.model_dump_json()
    return user_data() / "verified" / hashlib.sha256(f"{artifact.digest} {said}".encode()).hexdigest()
