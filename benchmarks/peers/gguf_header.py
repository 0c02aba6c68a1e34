"""The header of our GGUF files against that of llama.cpp's converter and quantizer, on the same checkpoint.

    python -m benchmarks.peers.gguf_header CHECKPOINT... --converter PATH/convert_hf_to_gguf.py [--to q4_k_m]

Theirs is made in two steps: the converter's bf16 file, then ``llama_model_quantize`` of the installed
library. Prints what differs in either file, key by key, and whether names, types and bytes of the tensors are
equal. Ends with 1 where a key differs that docs/adr/0005-header-of-gguf-files.md does not list.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.llama_quantize import quantize_file
from quantize.conversion import convert
from quantize.gguf.container.reader import GgufFile, read_gguf
from quantize.kernels.block_types import FILE_TYPES

ADR = Path(__file__).parents[2] / "docs" / "adr" / "0005-header-of-gguf-files.md"


def listed() -> set[str]:
    """Keys that the decision record's table allows to differ."""
    rows = re.findall(r"^\| (`.*?) \|", ADR.read_text(encoding="utf-8"), re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def differences(theirs: GgufFile, ours: GgufFile) -> dict[str, str]:
    """Key -> both values, of the keys that differ in value or type."""
    return {
        key: f"{str(theirs.kvs.get(key, 'absent'))[:60]} | {str(ours.kvs.get(key, 'absent'))[:60]}"
        for key in dict.fromkeys([*theirs.kvs, *ours.kvs])
        if theirs.kvs.get(key) != ours.kvs.get(key) or theirs.kv_types.get(key) != ours.kv_types.get(key)
    }


def same_tensors(theirs: GgufFile, ours: GgufFile) -> bool:
    return list(theirs.tensors) == list(ours.tensors) and all(
        (t.kind, t.shape) == (ours.tensors[n].kind, ours.tensors[n].shape)
        and theirs.raw(n).tobytes() == ours.raw(n).tobytes()
        for n, t in theirs.tensors.items()
    )


def pairs(checkpoint: Path, converter: Path, to: str) -> Iterator[tuple[str, GgufFile, GgufFile]]:
    """(type, theirs, ours) for the lossless file and the quantized one."""
    with tempfile.TemporaryDirectory() as scratch:
        theirs = {"bf16": Path(scratch) / "bf16.gguf", to: Path(scratch) / f"{to}.gguf"}
        command = [
            sys.executable,
            str(converter),
            str(checkpoint),
            "--outtype",
            "bf16",
            "--outfile",
            str(theirs["bf16"]),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(
                f"{checkpoint.name}: refused by the converter: "
                f"{(done.stderr.strip().splitlines() or ['?'])[-1][:100]}"
            )
            return
        quantize_file(theirs["bf16"], theirs[to], FILE_TYPES[to].value)
        for name, path in theirs.items():
            folder = Path(scratch) / f"ours-{name}"
            convert(str(checkpoint), f"gguf-{name}", folder, verify="none")
            yield name, read_gguf(path), read_gguf(min(folder.glob("*.gguf")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--converter", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument(
        "--to", default="q4_k_m", choices=[name for name, kind in FILE_TYPES.items() if kind.quantized]
    )
    options = parser.parse_args()
    allowed, unlisted = listed(), set()
    for checkpoint in options.checkpoints:
        for name, theirs, ours in pairs(checkpoint, options.converter, options.to):
            found = differences(theirs, ours)
            unlisted |= found.keys() - allowed
            tensors = "equal" if same_tensors(theirs, ours) else "DIFFER"
            print(
                f"{checkpoint.name} {name}: tensors {tensors}, {len(found)} of {len(theirs.kvs)} keys differ"
            )
            for key, values in found.items():
                print(f"    {key}{'' if key in allowed else ' (NOT LISTED)'}: {values}", flush=True)
    print("not listed:", ", ".join(sorted(unlisted)) or "none")
    sys.exit(1 if unlisted else 0)


if __name__ == "__main__":
    main()
