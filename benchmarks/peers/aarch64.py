"""The portable block quantizers compiled for AArch64 and run in an emulator, beside llama.cpp's here: how
many bytes differ.

    pip install ziglang unicorn     # a cross compiler and an emulator; neither is a dependency
    python -m benchmarks.peers.aarch64 [--weights 1e6]

Rows are those of ``benchmarks.peers.block_quantizers``, with and without importances.
"""

import argparse
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.block_quantizers import random_rows
from quantize.kernels.block_types import Type, row_bytes
from quantize.kernels.ggml import GGML
from quantize.kernels.native import IMPLEMENTATIONS, Native

C = Path(__file__).resolve().parents[2] / "quantize" / "kernels" / "c"
ROWS, COLUMNS = 8, 2048
DATA, STACK, RETURN = 0x1000_0000, 0x2000_0000, 0x3000_0000
MAPPED = 64 << 20
LOADED, SIZE_OF_HEADER = 1, 56  # of an ELF's program headers


class Emulated:
    """``quantwright_quantize`` of the image, called with what lies in the emulator's memory."""

    def __init__(self, image: bytes):
        from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc
        from unicorn import arm64_const as names

        self._names: Any = names
        self._cpu: Any = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self._entry, headers = struct.unpack_from("<QQ", image, 24)
        (count,) = struct.unpack_from("<H", image, 56)
        for start in (0, DATA, STACK, RETURN):
            self._cpu.mem_map(start, MAPPED)
        for number in range(count):
            kind, _, offset, address, _, size, _, _ = struct.unpack_from(
                "<IIQQQQQQ", image, headers + number * SIZE_OF_HEADER
            )
            if kind == LOADED:
                self._cpu.mem_write(address, image[offset : offset + size])
        enabled = self._cpu.reg_read(names.UC_ARM64_REG_CPACR_EL1) | (3 << 20)  # floating point
        self._cpu.reg_write(names.UC_ARM64_REG_CPACR_EL1, enabled)

    def quantize(self, kind: Type, rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
        """uint8 (rows, bytes of a row)."""
        count, columns = rows.shape
        weights, out = DATA + rows.nbytes, DATA + rows.nbytes + 4 * columns
        self._cpu.mem_write(DATA, rows.tobytes())
        if importance is not None:
            self._cpu.mem_write(weights, importance.tobytes())
        portable = IMPLEMENTATIONS.index("portable")
        arguments = (portable, int(kind), DATA, count, columns, 0 if importance is None else weights, out)
        for number, value in enumerate(arguments):
            self._cpu.reg_write(getattr(self._names, f"UC_ARM64_REG_X{number}"), value)
        self._cpu.reg_write(self._names.UC_ARM64_REG_SP, STACK + MAPPED // 2)
        self._cpu.reg_write(self._names.UC_ARM64_REG_LR, RETURN)
        self._cpu.emu_start(self._entry, RETURN)
        assert self._cpu.reg_read(self._names.UC_ARM64_REG_X0) == 0
        size = row_bytes(kind, columns)
        return np.frombuffer(bytes(self._cpu.mem_read(out, count * size)), np.uint8).reshape(count, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--weights", type=float, default=1e6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels"
        main_file = Path(folder) / "main.c"
        main_file.write_text("int main(void) { return 0; }\n")
        command = [
            sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-O3",
            "-std=gnu11", "-ffp-contract=off", "-fno-fast-math", "-fno-math-errno", "-Wno-psabi", "-fno-pie",
            "-no-pie", "-fno-stack-protector", "-Wl,-e,quantwright_quantize", "-o", str(made),
            *(str(path) for path in (C / "portable.c", C / "dispatch.c", main_file)),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        emulated = Emulated(made.read_bytes())
    for kind in sorted(Native.kinds):
        GGML.prepare(kind)
        for weighted in (False, True):
            source, random = random_rows(options.seed), np.random.default_rng(options.seed)
            done = differing = 0
            while done < options.weights:
                rows = np.ascontiguousarray(next(source)[:ROWS, :COLUMNS])
                importance = random.lognormal(0, 2, COLUMNS).astype(np.float32) if weighted else None
                expected = np.empty((ROWS, row_bytes(kind, COLUMNS)), np.uint8)
                GGML.quantize(kind, rows, expected, importance)
                differing += int((emulated.quantize(kind, rows, importance) != expected).sum())
                done += rows.size
            how = " with importances" if weighted else ""
            print(f"{kind.name}{how}: {differing:,} bytes of {done:,} weights differ", flush=True)


if __name__ == "__main__":
    main()
