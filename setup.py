"""The compiled kernels (docs/adr/0008-compiled-kernels.md); everything else stands in pyproject.toml.

Plain C that ctypes loads: nothing of Python is in it, so one file serves every version. Where no compiler is
found, installing goes on without.
"""

from pathlib import Path

from setuptools import Extension, setup

C = Path("quantize/kernels/c")

setup(
    ext_modules=[
        Extension(
            "quantize.kernels._native",
            sorted(path.as_posix() for path in C.glob("*.c")),
            depends=sorted(path.as_posix() for path in C.glob("*.h")),
            # No fused multiply-add and no other order of operations: each lane rounds as ggml's scalar code.
            extra_compile_args=[
                "-O3",
                "-std=gnu11",
                "-ffp-contract=off",
                "-fno-fast-math",
                "-fno-math-errno",
                "-fvisibility=hidden",
                "-Wno-psabi",
            ],
            optional=True,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
