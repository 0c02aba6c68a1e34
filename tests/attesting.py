"""The two commands about attestations, and bytes changed in a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from quantize.checkpoint.tensors import StoredTensors
from quantize.cli import cli
from quantize.gguf.container.reader import read_gguf


def run(*arguments: object) -> dict[str, Any]:
    """The command's JSON document, with ``error`` where it ended with one."""
    words = [str(argument) for argument in arguments]
    done = CliRunner().invoke(cli, [*words, "--json"], standalone_mode=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    document = json.loads(lines[-1]) if lines else {}
    return document | ({"error": done.exception} if done.exception else {})


def attest(artifact: Path, source: Path, *options: object) -> dict[str, Any]:
    return run("attest", artifact, "--source", source, "--threads", 1, *options)


def verify(artifact: Path, attestation: Path, *options: object) -> dict[str, Any]:
    return run("verify", artifact, "--attestation", attestation, *options)


def change(file: Path, offset: int, mask: int = 1) -> None:
    """Some bits of one byte."""
    with open(file, "r+b") as binary:
        binary.seek(offset)
        (byte,) = binary.read(1)
        binary.seek(offset)
        binary.write(bytes([byte ^ mask]))


def change_gguf(file: Path, name: str, at: int) -> None:
    change(file, read_gguf(file).tensors[name].offset + at)


def change_stored(folder: Path, name: str, at: int) -> None:
    """The lowest code of the word number ``at`` of a packed tensor."""
    info = StoredTensors(folder).info[name]
    change(info.file, info.offset + np.dtype(np.int32).itemsize * at)
