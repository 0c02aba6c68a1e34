"""A GGUF file that somebody published, read back and made again: what of it is the same.

    python benchmarks/peers/gguf_published.py FILE.gguf --to q4_k_m [--text FILE...] [--megabytes 10]

FILE must be one that llama.cpp's quantizer made by the mixture ``--to`` names. Compared are metadata, names,
shapes and types of the tensors, and their bytes: with the published file (F32, F16, BF16, Q8_0 and the simple
types come back exactly; K-quants of dequantized K-quants need not), and with what llama.cpp's own quantizer
makes of the same dequantized weights (all must be equal). With ``--text``, token ids of both files in
llama.cpp, paragraph by paragraph. Prints one JSON document.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.gguf_tokenizers import Vocabulary, paragraphs
from benchmarks.peers.llama_quantize import quantize_file
from quantize.conversion import convert
from quantize.gguf.container.reader import GgufFile, read_gguf
from quantize.kernels.block_types import FILE_TYPES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--to", required=True, choices=sorted(FILE_TYPES), metavar="TYPE")
    parser.add_argument("--text", nargs="+", type=Path, default=[])
    parser.add_argument("--megabytes", type=float, default=10)
    options = parser.parse_args()
    published = read_gguf(options.file)
    with tempfile.TemporaryDirectory() as scratch:
        made = {}
        for recipe in (options.to, "f32"):
            folder = Path(scratch) / recipe
            convert(str(options.file), f"gguf-{recipe}", folder, verify="none")
            (made[recipe],) = folder.glob("*.gguf")
        theirs = Path(scratch) / "theirs.gguf"
        quantize_file(made["f32"], theirs, FILE_TYPES[options.to].value, threads=2)
        ours = read_gguf(made[options.to])
        result: dict[str, Any] = {
            "metadata_that_differs": metadata(published, ours),
            "same_names_in_order": list(published.tensors) == list(ours.tensors),
            "bytes_equal_to_published": tensors(published, ours),
            "bytes_equal_to_llama_quantize_of_f32": tensors(read_gguf(theirs), ours),
        }
        if options.text:
            result["paragraphs"] = tokens(
                options.file, made[options.to], list(paragraphs(options.text, int(options.megabytes * 1e6)))
            )
    print(json.dumps(result, indent=1))


def metadata(published: GgufFile, ours: GgufFile) -> dict[str, str]:
    """Key -> both values, of the keys that differ in value or type."""
    return {
        key: f"{str(published.kvs.get(key, 'absent'))[:80]} | {str(ours.kvs.get(key, 'absent'))[:80]}"
        for key in dict.fromkeys([*published.kvs, *ours.kvs])
        if published.kvs.get(key) != ours.kvs.get(key)
        or published.kv_types.get(key) != ours.kv_types.get(key)
    }


def tensors(theirs: GgufFile, ours: GgufFile) -> dict[str, str]:
    """Type -> how many of their tensors of it ours has in the same shape and type with the same bytes."""
    equal, total = Counter[str](), Counter[str]()
    for name, tensor in theirs.tensors.items():
        mine = ours.tensors.get(name)
        alike = mine is not None and (mine.kind, mine.shape) == (tensor.kind, tensor.shape)
        total[tensor.kind.name] += 1
        equal[tensor.kind.name] += alike and np.array_equal(theirs.raw(name), ours.raw(name))
        if not alike:
            total[f"{name}: other shape or type"] += 1
    return {kind: f"{equal[kind]} of {count}" for kind, count in total.items()}


def tokens(published: Path, ours: Path, texts: list[str]) -> dict[str, int]:
    vocabularies = [Vocabulary(published), Vocabulary(ours)]
    different = sum(len({tuple(v.tokenize(text)) for v in vocabularies}) > 1 for text in texts)
    for vocabulary in vocabularies:
        vocabulary.close()
    return {
        "compared": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "different": different,
    }


if __name__ == "__main__":
    main()
