"""Which llama.cpp a build is, in words that can be looked up."""

import re

REPOSITORY = "https://github.com/ggml-org/llama.cpp"
#: commit -> llama.cpp's release of it, for what the tested llama-cpp-python packs
RELEASES = {"0c1e570": "b11312"}
#: as ggml says its commit; llama-cpp-python packs not all of llama.cpp's files, which git calls dirty
REVISION = re.compile(r"\b(?P<commit>[0-9a-f]{7,40})(?:-dirty)?\b")


def commit_of(revision: str) -> str | None:
    found = REVISION.fullmatch(revision.strip())
    return found["commit"] if found else None


def release_of(commit: str) -> str | None:
    return next((name for known, name in RELEASES.items() if commit.startswith(known)), None)
