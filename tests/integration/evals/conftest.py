"""A small checkpoint, a disturbed copy of it, and a text."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from quantize.calibration.texts import stdlib_documentation


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English text of some 5,000 tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(stdlib_documentation()[40_000:58_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="session")
def candidate(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with its weights disturbed."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("candidate") / "model"
    shutil.copytree(checkpoint, folder)
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.05)
    model.save_pretrained(folder)
    return folder
