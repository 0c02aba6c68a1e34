"""Several files from one reading: each has the bytes that it would have alone, and fails alone."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType

pytest.importorskip("llama_cpp")

from quantize.errors import StepFailed
from quantize.gguf.container.writer import File, Planned, Written, write_gguf, write_together
from quantize.kernels.block_types import Type

SHAPES = {"a.weight": (3, 40, 512), "b.weight": (700, 512), "c.weight": (5, 256)}
READ: Counter[str] = Counter()


def values(name: str, dtype: str) -> np.ndarray:
    shape = SHAPES[name]
    made = np.random.default_rng(len(name) + shape[-2]).standard_normal((int(np.prod(shape[:-1])), shape[-1]))
    made = made.astype(np.float32)
    return (made.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else made.astype(dtype)


def file(path: Path, kind: Type, dtype: str, *, via: Type | None = None, importance: bool = False) -> File:
    def load(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            READ[name] += 1
            return values(name, dtype)

        return read

    random = np.random.default_rng(1)
    tensors = []
    for name, shape in SHAPES.items():
        rows = (
            random.lognormal(0, 1, (int(np.prod(shape[:-2])), shape[-1])).astype(np.float32)
            if importance
            else None
        )
        tensors.append(Planned(name, shape, kind, load(name), lambda: None, via=via, importance=rows))
    kvs = {"general.name": (path.stem, GGUFValueType.STRING)}
    return File(path, kvs, tensors, split_max_bytes=300_000 if kind is Type.Q8_0 else None)


def files(folder: Path, dtype: str) -> list[File]:
    folder.mkdir()
    return [
        file(folder / "q4.gguf", Type.Q4_K, dtype, importance=True),
        file(folder / "f32.gguf", Type.F32, dtype),
        file(folder / "via.gguf", Type.Q6_K, dtype, via=Type.F16),
        file(folder / "plain.gguf", Type.Q6_K, dtype),
        file(folder / "bf16.gguf", Type.BF16, dtype),
        file(folder / "split.gguf", Type.Q8_0, dtype),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["bf16", "float16", "float32"])
@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_are_those_of_each_alone(tmp_path: Path, dtype: str, threads: int) -> None:
    alone = [
        write_gguf(each.path, each.kvs, each.tensors, threads=threads, split_max_bytes=each.split_max_bytes)
        for each in files(tmp_path / "alone", dtype)
    ]
    READ.clear()
    done: list[int] = []
    together = write_together(files(tmp_path / "together", dtype), threads=threads, progress=done.append)
    assert set(READ.values()) == {1}, "read once"
    assert sum(done) == sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert len(contents(tmp_path / "together")) > 6, "one is split"
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, Written)
        assert (one.checksums, one.data_bytes) == (other.checksums, other.data_bytes)
        assert list(one.files.values()) == list(other.files.values())


def test_what_one_type_does_not_hold_costs_that_file_alone(tmp_path: Path) -> None:
    large = np.zeros((64, 256), np.float32)
    large[7, 7] = 1e5  # more than float16 holds

    def planned(kind: Type) -> list[Planned]:
        return [
            Planned("first", (64, 256), kind, lambda: large / 1e5, lambda: None),
            Planned("large", (64, 256), kind, lambda: large, lambda: None),
            Planned("last", (64, 256), kind, lambda: large / 1e5, lambda: None),
        ]

    kinds = {kind.name: kind for kind in (Type.F16, Type.BF16, Type.Q8_0)}
    results = write_together(
        [File(tmp_path / f"{name}.gguf", {}, planned(kind)) for name, kind in kinds.items()], threads=2
    )
    assert isinstance(results[0], StepFailed)
    assert str(results[0]).startswith("tensor large: values up to 1e+05 do not fit into F16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BF16.gguf", "Q8_0.gguf"]
    for result in results[1:]:
        assert isinstance(result, Written)
        assert list(result.checksums) == ["first", "large", "last"]


def test_a_value_that_is_no_number_is_nobodys_alone(tmp_path: Path) -> None:
    broken = np.full((4, 256), np.nan, np.float32)

    def one(kind: Type) -> File:
        return File(
            tmp_path / f"{kind.name}.gguf", {}, [Planned("a", (4, 256), kind, lambda: broken, lambda: None)]
        )

    with pytest.raises(StepFailed, match=r"^tensor a holds NaN or Inf values"):
        write_together([one(Type.Q8_0), one(Type.Q4_K)], threads=2)


def test_a_file_that_cannot_be_opened_costs_that_file_alone(tmp_path: Path) -> None:
    rows = np.ones((4, 256), np.float32)
    tensors = [Planned("a", (4, 256), Type.Q8_0, lambda: rows, lambda: None)]
    (tmp_path / "there.gguf").mkdir()
    there, good = write_together(
        [File(tmp_path / "there.gguf", {}, tensors), File(tmp_path / "good.gguf", {}, tensors)], threads=1
    )
    assert isinstance(there, IsADirectoryError)
    assert isinstance(good, Written)
    assert (tmp_path / "there.gguf").is_dir()
