"""A small model, and what recipes make of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from quantize import convert
from quantize.artifact.artifact import Artifact
from quantize.recipe import RunOptions

RUN = RunOptions(device="cpu", threads=1, progress=False)


@pytest.fixture(scope="module")
def source(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    folder, known = tmp_path_factory.mktemp("made"), dict[str, Artifact]()

    def make(short: str) -> Artifact:
        if short not in known:
            known[short] = convert(source, short, folder / short.replace(":", "-"), verify="none", run=RUN)
        return known[short]

    return make
