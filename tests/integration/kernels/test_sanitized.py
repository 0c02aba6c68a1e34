"""The compiled kernels under the address and undefined-behaviour sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house import ROOT

#: run in a process of its own, in which the sanitizers' library comes first
PROGRAM = """
import ctypes, sys
import numpy as np
from awkward_rows import IMPORTANCES, ROWS, importance_of, rows_of
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type

library = ctypes.CDLL(sys.argv[1])
pointer, long = ctypes.c_void_p, ctypes.c_int64
quantize = library.quantwright_quantize
quantize.restype = long
quantize.argtypes = [ctypes.c_int, ctypes.c_int, pointer, long, long, pointer, pointer]
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = pointer, [ctypes.c_size_t], [pointer]

def exactly(array):
    # malloc is the sanitizers': a byte before or behind is found
    at = libc.malloc(array.nbytes)
    ctypes.memmove(at, array.ctypes.data, array.nbytes)
    return at

done = 0
for name in sys.argv[2].split(","):
    weights, size = GGML_QUANT_SIZES[Type[name]]
    for which in range(library.quantwright_best() + 1):
        for values in ROWS:
            for kind in IMPORTANCES:
                rows, importance = rows_of(values, (5, 512)), importance_of(kind, 512)
                x, out = exactly(rows), exactly(np.zeros(rows.size // weights * size, np.uint8))
                w = None if importance is None else exactly(importance)
                assert quantize(which, Type[name], x, *rows.shape, w, out) >= 0
                for at in (x, out, w):
                    libc.free(at)
                done += 1

# numpy's buffers are the sanitizers' too
from quantize.kernels.grid import search_arguments
from quantize.kernels.native import declared
from quantize.kernels.rounded import TYPES, RowRounder
from quantize.numerics.grids import Grid
from quantize.numerics.rtn import tried

random = np.random.default_rng(0)
for which in range(library.quantwright_best() + 1):
    ours = declared(library, which)
    for columns, size in ((96, -1), (96, 24), (2432, 64), (250, -1), (250, 10)):
        weight = random.normal(0, 1, (3, columns)).astype(np.float32)
        for bits, symmetric, positive in ((4, True, False), (4, False, False), (8, True, True)):
            grid = Grid(bits, size, symmetric, positive=positive)
            asked = search_arguments(grid, tried(grid))
            scales, zeros = (np.empty((3, columns // grid.columns(columns)), np.float32) for _ in range(2))
            shares = np.ones(columns, np.float32)
            library.quantwright_grid(
                which, ctypes.addressof(asked), columns, grid.columns(columns), 0, 3,
                *(each.ctypes.data for each in (weight, shares, scales, zeros)))
            done += 1
        for dtype, (_, kind) in TYPES.items():
            raw = weight if dtype == "F32" else (weight.view(np.uint32) >> 16).astype(kind) & 0xBFFF
            for grid in (grid, Grid(4, size, True), Grid(4, size, False), None):
                assert RowRounder(ours, dtype, columns, "BF16", grid)(raw).fits
                done += 1
print(done)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD")
def test_no_kernel_reads_beside_its_rows_or_does_what_c_leaves_open(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        pytest.skip("no C compiler here")
    sources = sorted((ROOT / "quantize/kernels/c").glob("*.c"))
    library = tmp_path / "kernels.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-g", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi"]
    sanitizers = "-fsanitize=address,undefined,float-cast-overflow"
    subprocess.run([*command, sanitizers, "-fno-sanitize-recover=all", *sources, "-o", library], check=True)
    asan = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    kinds = "Q4_0,Q4_1,Q5_0,Q5_1,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_NL,IQ4_XS"
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, library, kinds],
        env={
            **os.environ,
            "LD_PRELOAD": asan,
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert int(ran.stdout) >= 12 * 17 * 6 + 5 * 15
