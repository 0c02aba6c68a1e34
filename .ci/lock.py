"""Write requirements.lock: every pin of quantize/constraints.txt with the sha256 of the file that pip takes
for it.

    python -m pip install --dry-run --ignore-installed --no-deps --report REPORT -r quantize/constraints.txt
    python .ci/lock.py REPORT [REPORT ...] > requirements.lock

Run it on Linux x86-64 with CPython 3.11. Several reports: where an index and a folder of wheels hold
different builds of one release, as of torch for CPUs and for CUDA, both are allowed.

The lock of an engine in an environment of its own (quantize/engines/isolated), which borrows torch:

    python -m pip install --dry-run --ignore-installed --report REPORT torch==2.13.0 auto-round==0.16.1
    python .ci/lock.py --engine REPORT > quantize/engines/isolated/auto-round.lock
"""

import json
import sys
from pathlib import Path

HEAD = """\
# The pins of quantize/constraints.txt with the sha256 of their files, for CPython 3.11 on Linux x86-64
# (.ci/lock.py wrote it).
# torch has two: the build for CPUs and the one with CUDA.
"""
ENGINE_HEAD = """\
# What was asked for: {asked}
# The sha256 are those of the files for CPython 3.11 on Linux x86-64 (.ci/lock.py wrote it); torch and what
# comes with it are not here: the environment takes those that are at hand.
"""
#: what torch's CUDA build brings
CUDA = ("triton", "nvidia-", "cuda-")


def main() -> None:
    engine = sys.argv[1] == "--engine"
    hashes: dict[str, set[str]] = {}
    asked: list[str] = []
    for report in sys.argv[1 + engine :]:
        for entry in json.loads(Path(report).read_text(encoding="utf-8"))["install"]:
            name, version = entry["metadata"]["name"], entry["metadata"]["version"].split("+")[0]
            asked += [f"{name}=={version}"] if entry["requested"] else []
            if engine and at_hand(name.lower()):
                continue
            sha256 = entry["download_info"]["archive_info"]["hashes"]["sha256"]
            hashes.setdefault(f"{name}=={version}", set()).add(sha256)
    print(ENGINE_HEAD.format(asked=" ".join(sorted(asked))) if engine else HEAD, end="")
    for pin, found in sorted(hashes.items(), key=lambda item: item[0].lower()):
        print(" \\\n    ".join([pin, *(f"--hash=sha256:{value}" for value in sorted(found))]))


def at_hand(name: str) -> bool:
    return name == "torch" or (name.startswith(CUDA) and name != "nvidia-ml-py")


if __name__ == "__main__":
    main()
