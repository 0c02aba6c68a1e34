"""The matrices of one of the source's tensors, an expert's at a time where it holds those of a whole layer:
no more of it is in memory."""

from collections.abc import Iterator, Sequence

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.dtypes import FLOATS, to_float32
from quantize.hf.matrices import Linear


def pieces(
    checkpoint: Checkpoint, source: str, linears: Sequence[Linear]
) -> Iterator[tuple[np.ndarray, list[Linear]]]:
    """(float32 values, those of ``linears`` that lie in them, placed there): the entries of the first axis in
    order, or all at once where matrices do not lie in one entry each, or it cannot be read so.

    Errors: StepFailed where a weight is not finite.
    """
    info = checkpoint.tensors[source]
    read = checkpoint.entries(source) if info.dtype in FLOATS and len(info.shape) == 3 else None
    if read is None or any(linear.in_source.index is None for linear in linears):
        yield checkpoint.read_float32(source), list(linears)
        return
    for index in range(info.shape[0]):
        values = to_float32(read(index), info.dtype)
        if not np.isfinite(values.max(initial=0)) or not np.isfinite(values.min(initial=0)):
            checkpoint.read_float32(source)  # which says where
        yield values, [linear.in_entry for linear in linears if linear.in_source.index == index]
