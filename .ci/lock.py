"""Write requirements.lock: every pin of quantize/constraints.txt with the sha256 of the file that pip takes
for it.

    python -m pip install --dry-run --ignore-installed --no-deps --report REPORT -r quantize/constraints.txt
    python .ci/lock.py REPORT [REPORT ...] > requirements.lock

Run it on Linux x86-64 with CPython 3.11. Several reports: where an index and a folder of wheels hold
different builds of one release, as of torch for CPUs and for CUDA, both are allowed.
"""

import json
import sys
from pathlib import Path

HEAD = """\
# The pins of quantize/constraints.txt with the sha256 of their files, for CPython 3.11 on Linux x86-64
# (.ci/lock.py wrote it).
# torch has two: the build for CPUs and the one with CUDA.
"""


def main() -> None:
    hashes: dict[str, set[str]] = {}
    for report in sys.argv[1:]:
        for entry in json.loads(Path(report).read_text(encoding="utf-8"))["install"]:
            pin = f"{entry['metadata']['name']}=={entry['metadata']['version'].split('+')[0]}"
            hashes.setdefault(pin, set()).add(entry["download_info"]["archive_info"]["hashes"]["sha256"])
    print(HEAD, end="")
    for pin, found in sorted(hashes.items(), key=lambda item: item[0].lower()):
        print(" \\\n    ".join([pin, *(f"--hash=sha256:{value}" for value in sorted(found))]))


if __name__ == "__main__":
    main()
