"""Experts go into a file one by one: the bytes of the whole, made by several threads, a bounded part of it in
memory, and written while the next are made."""

import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from quantize.errors import StepFailed
from quantize.gguf.container.writer import IN_FLIGHT_BYTES, File, Planned, Written, write_gguf, write_together
from quantize.kernels.base import BlockQuantizer
from quantize.kernels.block_types import Type
from quantize.kernels.ggml import GGML

EXPERTS, ROWS, COLUMNS = 5, 300, 512
KINDS = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_K, Type.Q6_K, Type.IQ4_NL]
WAIT_SECONDS = 20.0


def experts(dtype: str, transposed: bool) -> np.ndarray:
    """(experts, rows, columns), seen through a view of (experts, columns, rows) where ``transposed``."""
    shape = (EXPERTS, COLUMNS, ROWS) if transposed else (EXPERTS, ROWS, COLUMNS)
    made = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    made = (made.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else made.astype(dtype)
    return made.swapaxes(1, 2) if transposed else made


def planned(kind: Type, values: np.ndarray, one_by_one: bool, importance: np.ndarray | None) -> Planned:
    def whole() -> np.ndarray:
        return np.ascontiguousarray(values).reshape(-1, values.shape[-1])

    def never() -> np.ndarray:
        raise AssertionError("all of it was read")

    return Planned(
        "blk.0.ffn_up_exps.weight",
        values.shape,
        kind,
        never if one_by_one else whole,
        lambda: None,
        importance=importance,
        matrix=values.__getitem__ if one_by_one else None,
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "float16", "float32"])
def test_bytes_are_those_of_the_whole(tmp_path: Path, dtype: str, transposed: bool, threads: int) -> None:
    values = experts(dtype, transposed)
    weights = np.random.default_rng(4).lognormal(0, 1, (EXPERTS, COLUMNS)).astype(np.float32)
    for kind in KINDS:
        importance = weights if kind in (Type.Q4_K, Type.IQ4_NL) else None
        digests = set()
        for one_by_one in (False, True):
            made = planned(kind, values, one_by_one, importance)
            written = write_gguf(tmp_path / "a.gguf", {}, [made], threads=threads)
            digests.update(written.files.values())
        assert len(digests) == 1, kind


def test_several_files_read_each_expert_once(tmp_path: Path) -> None:
    values, read = experts("bf16", False), []

    def matrix(index: int) -> np.ndarray:
        read.append(index)
        return np.asarray(values[index])

    def file(kind: Type) -> File:
        tensor = Planned(
            "a", values.shape, kind, lambda: values.reshape(-1, COLUMNS), lambda: None, matrix=matrix
        )
        return File(tmp_path / f"{kind.name}.gguf", {}, [tensor])

    together = write_together([file(kind) for kind in KINDS], threads=2)
    assert read == list(range(EXPERTS))
    for kind, written in zip(KINDS, together, strict=True):
        assert isinstance(written, Written)
        alone = write_gguf(tmp_path / "alone.gguf", {}, [planned(kind, values, False, None)], threads=1)
        assert written.checksums["a"] == alone.checksums["blk.0.ffn_up_exps.weight"]


class Watched(BlockQuantizer):
    """ggml's quantizer, told before each chunk what happens then."""

    name, kinds = "watched", GGML.kinds

    def __init__(self, before: Callable[[np.ndarray], None]):
        self.before = before

    @property
    def version(self) -> str:
        return GGML.version

    def prepare(self, kind: Type) -> None:
        GGML.prepare(kind)

    def quantize(
        self, kind: Type, rows: np.ndarray, out: np.ndarray, importance: np.ndarray | None = None
    ) -> None:
        self.before(rows)
        GGML.quantize(kind, rows, out, importance)


def test_two_threads_have_two_experts_at_once(tmp_path: Path) -> None:
    values = np.repeat(np.arange(4, dtype=np.float32), 32 * 256).reshape(4, 32, 256)
    both, pairs = threading.Barrier(2), []

    def meet(rows: np.ndarray) -> None:
        pairs.append(float(rows[0, 0]))
        both.wait(WAIT_SECONDS)  # breaks where the other thread has nothing to do

    write_gguf(
        tmp_path / "a.gguf",
        {},
        [planned(Type.Q8_0, values, True, None)],
        threads=2,
        quantizer=Watched(meet),
    )
    assert sorted(pairs) == [0, 1, 2, 3]


def test_the_first_experts_are_on_the_disk_before_the_last_is_made(tmp_path: Path) -> None:
    shape, path = (8, 1024, 2048), tmp_path / "a.gguf"

    def matrix(index: int) -> np.ndarray:
        return np.full(shape[1:], index + 1, np.float32)

    seen: list[int] = []

    def wait(rows: np.ndarray) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while rows[0, 0] == shape[0] and time.monotonic() < deadline:
            seen.append(path.stat().st_size if path.exists() else 0)
            if seen[-1] > 4 * 1024 * 2048:  # of 8.5 bits each: almost half of the file
                return
            time.sleep(0.005)

    tensor = Planned("a", shape, Type.Q8_0, lambda: np.empty(0), lambda: None, matrix=matrix)
    write_gguf(path, {}, [tensor], threads=1, quantizer=Watched(wait))
    assert seen[-1] > 4 * 1024 * 2048


def test_what_is_read_is_let_go(tmp_path: Path) -> None:
    """A thread that is slower than the reading does not make it pile up."""
    shape = (40, 256, 4096)
    size, alive, most = 4 * 256 * 4096, 0, 0
    lock = threading.Lock()

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def matrix(index: int) -> np.ndarray:
        nonlocal alive, most
        values = np.full(shape[1:], 0.5, np.float32)
        weakref.finalize(values, gone)
        with lock:
            alive += 1
            most = max(most, alive)
        return values

    tensor = Planned("a", shape, Type.Q8_0, lambda: np.empty(0), lambda: None, matrix=matrix)
    write_gguf(tmp_path / "a.gguf", {}, [tensor], threads=1)
    assert 20 * size > IN_FLIGHT_BYTES, "the bound would not show"
    assert 1 <= most * size <= IN_FLIGHT_BYTES + 2 * size
    assert alive == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_one_expert_that_is_no_number_ends_it_by_name(tmp_path: Path, threads: int) -> None:
    values = experts("float32", False).copy()
    values[3, 7, 7] = np.nan
    with pytest.raises(StepFailed, match=r"^tensor blk\.0\.ffn_up_exps\.weight holds NaN or Inf values"):
        write_gguf(tmp_path / "a.gguf", {}, [planned(Type.Q4_K, values, True, None)], threads=threads)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("quantize", "hash"))]
