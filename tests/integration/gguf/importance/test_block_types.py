"""Block types that weigh columns by their importance, in which some have none."""

import numpy as np
import pytest
from gguf.quants import dequantize

from quantize.gguf.importance.file import Entry, ImportanceMatrix
from quantize.gguf.importance.use import WEIGHTED, importances
from quantize.gguf.mixture import Choice, Spec
from quantize.kernels.block_types import FILE_TYPES, TENSOR_TYPES, Type, block_size, row_bytes
from quantize.kernels.ggml import GGML

pytest.importorskip("llama_cpp")


@pytest.mark.parametrize(
    "kind",
    sorted(WEIGHTED & set(TENSOR_TYPES.values()), key=lambda kind: kind.name),
    ids=lambda kind: kind.name,
)
@pytest.mark.parametrize("columns", [8, 32, 256, 512])
def test_columns_without_importance_count_alike(kind: Type, columns: int) -> None:
    """In every block format they come back like their source, where weights of zero would take any value for
    good."""
    random = np.random.default_rng(1)
    sums = random.lognormal(0, 1, (1, 512)).astype(np.float32)
    sums[0, :columns] = 0
    name = "blk.0.attn_q.weight"
    specs, choices = [Spec(name, (4, 512), Type.F32)], {name: Choice(kind, kind)}
    given = importances(
        ImportanceMatrix({name: Entry(sums, np.array([10]))}, (), 1, 32),
        specs,
        choices,
        FILE_TYPES["q4_k_m"],
        "m.dat",
    )
    (note,) = given.notes
    assert (note.tensor, note.what) == (name, f"equal importances for {columns} of 512 columns")
    rows = random.standard_normal((4, 512)).astype(np.float32)
    out = np.empty((4, row_bytes(kind, 512)), np.uint8)
    GGML.prepare(kind)
    GGML.quantize(kind, rows, out, given.rows[name][0])
    back = dequantize(out, kind)
    part = slice(0, columns)
    cosine = (
        (back[:, part] * rows[:, part]).sum() / np.linalg.norm(back[:, part]) / np.linalg.norm(rows[:, part])
    )
    assert cosine > 0.6, block_size(kind)
