"""Values that are copied or looked up instead of going by float32: the same bits, and the same refusals."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from quantize.errors import StepFailed
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.container.writer import Planned, write_gguf
from quantize.kernels.block_types import Type

BF16 = np.arange(1 << 16, dtype=np.uint16)
F32 = (BF16.astype(np.uint32) << 16).view(np.float32)


def write(path: Path, rows: np.ndarray, kind: Type) -> np.ndarray:
    tensor = Planned("a", rows.shape, kind, lambda: rows, lambda: None)
    write_gguf(path, {}, [tensor], threads=2)
    return read_gguf(path).raw("a")


def test_every_bf16_number_becomes_the_f16_that_numpy_makes_of_it(tmp_path: Path) -> None:
    fits = np.abs(F32) < 65520  # halfway from the largest float16 to what would come next
    rows = np.concatenate([BF16[fits], np.zeros(-fits.sum() % 32, np.uint16)]).reshape(-1, 32)
    wide = (rows.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(
        write(tmp_path / "a.gguf", rows, Type.F16).reshape(-1).view(np.uint16),
        wide.astype(np.float16).view(np.uint16).reshape(-1),
    )


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16])
@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFC1])
def test_bf16_that_is_no_number_is_refused(tmp_path: Path, kind: Type, bits: int) -> None:
    rows = np.ones((4, 32), np.float32).view(np.uint32).astype(np.uint16)
    rows[3, 31] = bits
    with pytest.raises(StepFailed, match=r"^tensor a holds NaN or Inf values"):
        write(tmp_path / "a.gguf", rows, kind)


def test_f16_that_is_no_number_is_refused(tmp_path: Path) -> None:
    rows = np.ones((4, 32), np.float16)
    rows[0, 0] = np.inf
    with pytest.raises(StepFailed, match=r"^tensor a holds NaN or Inf values"):
        write(tmp_path / "a.gguf", rows, Type.F16)


def test_bf16_beyond_the_range_of_f16_is_refused_with_its_size(tmp_path: Path) -> None:
    rows = np.zeros((4, 32), np.uint16)
    rows[1, 1] = BF16[F32 == 65536][0]
    with pytest.raises(
        StepFailed,
        match=r"^tensor a: values up to 6\.554e\+04 do not fit into F16; use a type with more range",
    ):
        write(tmp_path / "a.gguf", rows, Type.F16)
