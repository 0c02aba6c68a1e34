"""A checkpoint whose tensors are made as they are read, held against one that lies in files."""

import numpy as np
import torch

from quantize.checkpoint.checkpoint import Checkpoint


def same_tensors(stored: Checkpoint, lazy: Checkpoint) -> None:
    """Read from files and made when read: the same headers in the same order, the same bits, whatever the
    order in which they are asked for."""
    assert stored.config == lazy.config
    assert [(name, info.shape, info.dtype) for name, info in stored.tensors.items()] == [
        (name, info.shape, info.dtype) for name, info in lazy.tensors.items()
    ]
    assert (stored.dtype, stored.parameters) == (lazy.dtype, lazy.parameters)
    for name in [*stored.tensors, *reversed(stored.tensors)]:
        one, other = np.ascontiguousarray(stored.read(name)), lazy.read(name)
        assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes()), name
        assert torch.equal(stored.read_torch(name), lazy.read_torch(name)), name
