"""Gather training text for the demo checkpoint: books, and the documentation strings of the installed Python
packages.

Writes one text file per source into a folder that ``demo/train.py`` reads. Documents are separated by a line
holding ``<|endoftext|>``. The topics of ``pydoc_data`` are the held-out text: that package is never read, and
any document that shares a run of twelve words with it is left out (some packages quote the language
reference).

    python demo/corpus.py OUT_DIR --books books.txt.gz
"""

import argparse
import gzip
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from quantize.calibration.texts import documentation_strings, held_out_text

SEPARATOR = "<|endoftext|>"
SHINGLE = 12  # words


def shingles(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1)}


def documentation(roots: list[Path], banned: set[int]) -> Iterator[str]:
    seen: set[int] = set()
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root).parts
            if "pydoc_data" in inside or "site-packages" in inside:
                continue
            kept = []
            for part in "\n\n".join(documentation_strings(path)).split("\n\n"):
                key = hash(part)
                if key in seen or (len(part) > 80 and shingles(part) & banned):
                    continue
                seen.add(key)
                kept.append(part)
            text = "\n\n".join(kept)
            if len(text) > 200:
                yield text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--books", type=Path, help="text file (.gz allowed), books separated by <|endoftext|>"
    )
    args = parser.parse_args()

    banned = shingles(held_out_text())
    args.out.mkdir(parents=True, exist_ok=True)
    paths = sysconfig.get_paths()
    stdlib, site = Path(paths["stdlib"]), Path(paths["purelib"])
    for name, roots in {"stdlib": [stdlib], "packages": [site]}.items():
        with open(args.out / f"{name}.txt", "w", encoding="utf-8") as out:
            size = 0
            for text in documentation(roots, banned):
                size += out.write(text + "\n" + SEPARATOR + "\n")
        print(f"{name}: {size / 1e6:.1f} MB")
    if args.books:
        with (
            gzip.open(args.books, "rt", encoding="utf-8") as source,
            open(args.out / "books.txt", "w") as out,
        ):
            out.write(source.read())


if __name__ == "__main__":
    main()
