"""A million damaged GGUF files: each is read or refused in one line, quickly, without memory that the file
does not account for.

``FUZZ_CASES`` and ``FUZZ_SEED`` in the environment change how many and which; the seed is printed.
"""

import os
import random
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType as V

from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.container.writer import Planned, write_gguf
from quantize.kernels.block_types import Type

CASES = int(os.environ.get("FUZZ_CASES", 1_000_000))
SEED = int(os.environ.get("FUZZ_SEED", 0)) or random.SystemRandom().getrandbits(32)
# What counts, lengths and offsets are likely to be wrong with: sign bits, products that overflow, limits of
# our own.
EXTREMES = [
    0,
    1,
    4,
    8,
    9,
    12,
    31,
    32,
    255,
    256,
    *(2**power + more for power in (16, 24, 26, 31, 32, 62, 63, 64) for more in (-1, 1)),
    2**63,
]
SLOWEST_S = 5.0  # a hang, not a figure: a case takes about a tenth of a millisecond
GROWTH_BYTES = 200 << 20  # the files are under 4 kB; the rest is what the interpreter itself takes


def nested(depth: int) -> bytes:
    """The value of an array of arrays of ... of one byte."""
    return struct.pack("<IQ", V.ARRAY, 1) * depth + struct.pack("<IQB", V.UINT8, 1, 7)


def documents(folder: Path) -> list[bytes]:
    """Small good files that reach every branch: each value type, quantized tensors, split parts, nested
    arrays."""

    def plan(name: str, shape: tuple[int, ...], kind: Type) -> Planned:
        values = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(-1, shape[-1]) / 7
        return Planned(name, shape, kind, lambda: values, lambda: None)

    kvs = {
        "general.architecture": ("llama", V.STRING), "general.alignment": (32, V.UINT32),
        "general.file_type": (15, V.UINT32),
        "tokenizer.ggml.tokens": (["a", "é", "\udcff", "<s>"], V.ARRAY), "tokenizer.ggml.scores": ([0.5, -1.0,
        2.0], V.ARRAY),
        "x.bool": (True, V.BOOL), "x.u64": (2**63, V.UINT64), "x.i8": (-3, V.INT8), "x.f64": (0.1, V.FLOAT64),
    }  # fmt: skip
    made = []
    for number, tensors in enumerate([
        [plan("a.weight", (2, 32), Type.F32), plan("b.weight", (3,), Type.F32)],
        [plan("q.weight", (2, 256), Type.Q4_K), plan("r.weight", (1, 64), Type.Q8_0), plan("h.weight", (4, 2,
        8), Type.F16)],
        [],
    ]):  # fmt: skip
        path = folder / f"{number}.gguf"
        write_gguf(path, kvs if tensors else dict(list(kvs.items())[:1]), tensors, threads=1)
        made.append(path.read_bytes())
    split = {
        **kvs,
        "split.no": (0, V.UINT16),
        "split.count": (2, V.UINT16),
        "split.tensors.count": (2, V.INT32),
    }
    write_gguf(folder / "s-00001-of-00002.gguf", split, [plan("a.weight", (2, 32), Type.F32)], threads=1)
    made.append((folder / "s-00001-of-00002.gguf").read_bytes())
    key = b"deep"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<I", V.ARRAY) + nested(3)
    made.append(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry)
    return made


def damaged(rng: random.Random, sources: list[bytes]) -> bytes:
    data = bytearray(rng.choice(sources))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(7):
            case 0 if data:
                data[at] = rng.randrange(256)
            case 1 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES) % 2**64)
            case 3:
                data[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) % 2**32)
            case 4:
                del data[at : at + rng.choice((1, 4, 8, 100, 10_000))]
            case 5:
                data[at:at] = data[at : at + rng.choice((1, 4, 8, 64))]
            case _:
                other = rng.choice(sources)
                start = rng.randrange(len(other))
                data[at : at + 32] = other[start : start + 32]
    return bytes(data)


def rewrite(path: Path, data: bytes) -> None:
    """In place: emptying a file and filling it again makes ext4 flush it at every close."""
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(data)
        file.truncate()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_million_damaged_files(tmp_path: Path) -> None:
    print(f"seed {SEED}, {CASES} cases")
    rng, sources = random.Random(SEED), documents(tmp_path)
    # As the first of two parts, so that a case that still says so goes on to its second part.
    path, second = tmp_path / "f-00001-of-00002.gguf", tmp_path / "f-00002-of-00002.gguf"
    read = refused = 0
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(CASES):
        rewrite(path, damaged(rng, sources))
        if number % 64 == 0:
            rewrite(second, damaged(rng, sources))
        start = time.perf_counter()
        try:
            file = read_gguf(path)
            for name, tensor in file.tensors.items():
                assert tensor.size_bytes <= 1 << 16
                assert file.dequantize(name).shape == tensor.shape
            read += 1
        except (BadInput, Unsupported) as error:
            if "\n" in (message := str(error)) or len(message) > 1000:
                raise AssertionError(f"not one line: {message!r}") from error
            refused += 1
        except BaseException as error:
            error.add_note(f"case {number} of seed {SEED}: {path.read_bytes()!r}")
            raise
        slowest = max(slowest, time.perf_counter() - start)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{read} read, {refused} refused, slowest {slowest:.3f} s, memory grew by {growth / 1e6:.0f} MB")
    assert read > CASES // 100
    assert refused > CASES // 10
    assert slowest < SLOWEST_S
    assert growth < GROWTH_BYTES
