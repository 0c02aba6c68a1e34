"""The readable quantizers of ggml's block types against llama.cpp's own."""

import numpy as np
import pytest
from awkward_rows import IMPORTANCES, ROWS, importance_of, rows_of
from block_bytes import KINDS, holds, llamacpp_blocks, oracle_blocks

from quantize.kernels.block_types import Type
from quantize.numerics.scale_search import nearest

pytest.importorskip("llama_cpp")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("values", ROWS)
def test_bytes_are_those_of_llamacpp(kind: Type, values: str) -> None:
    """Where half precision holds the scales of a block; others are refused."""
    rows = rows_of(values, (3, 512))
    for weights in IMPORTANCES:
        importance = importance_of(weights, 512)
        expected, made = llamacpp_blocks(kind, rows, importance), oracle_blocks(kind, rows, importance)
        held = holds(kind, expected)
        assert np.array_equal(holds(kind, made), held)
        assert np.array_equal(made[held], expected[held]), weights


def test_nearest_is_numpys_where_numbers_are_small() -> None:
    values = np.concatenate([np.arange(-40, 40) / 8, [2.0**22 - 1, -(2.0**22) + 1]]).astype(np.float32)
    assert np.array_equal(nearest(values), np.rint(values).astype(np.int32))
