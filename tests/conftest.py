"""Shared fixtures: small real checkpoints. Tests run offline and without anything outside this repository."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The embedded checkpoint: a trained 4-layer Llama, hidden 256, vocabulary 4096."""
    return ROOT / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Third-party models and data beside the checkout; tests that need them skip, by name, where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("third-party data (../shared) is absent")
    return SHARED


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory of small random-weight Llama checkpoints with the demo's tokenizer; keyword arguments go to LlamaConfig."""

    def make(**config: object) -> Path:
        import shutil

        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        settings = {
            "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
            "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False,
        }  # fmt: skip
        folder = tmp_path_factory.mktemp("checkpoint")
        LlamaForCausalLM(LlamaConfig(**{**settings, **config})).to(torch.bfloat16).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "demo" / "checkpoint" / name, folder / name)
        return folder

    return make
