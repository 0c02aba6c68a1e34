"""Each compiled implementation that this processor can run."""

import pytest

from quantize.errors import BadInput
from quantize.kernels import native


@pytest.fixture(params=native.IMPLEMENTATIONS)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> native.Library:
    """It is what runs while the test does."""
    monkeypatch.setenv(native.VARIABLE, request.param)
    try:
        found = native.load()
    except BadInput as error:
        pytest.skip(str(error))
    if isinstance(found, str):
        pytest.skip(f"no compiled kernels here: {found}")
    return found
