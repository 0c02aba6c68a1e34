"""What tests of packed methods share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def eager() -> Iterator[None]:
    """The runtime's kernels compile their dequantization at the first call: a minute for milliseconds."""
    import torch

    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")
