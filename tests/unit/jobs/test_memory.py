"""What conversions are said to hold, against what was measured, and for a model larger than memory."""

from pathlib import Path

import pytest

from jobs.memory import conversion_memory
from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo
from quantize.methods.registry import method, parse_recipe


def shaped(layers: int, hidden: int, wide: int, vocabulary: int) -> Checkpoint:
    """A decoder's tensors in bfloat16, of which none exists; the output layer tied."""
    tensors = {"model.embed_tokens.weight": TensorInfo("", (vocabulary, hidden), "BF16")}
    for layer in range(layers):
        for name in ("gate", "up", "down"):
            key = f"model.layers.{layer}.mlp.{name}_proj.weight"
            tensors[key] = TensorInfo(key, (wide, hidden), "BF16")
        key = f"model.layers.{layer}.self_attn.weight"
        tensors[key] = TensorInfo(key, (3 * hidden, hidden), "BF16")
    config = {"num_hidden_layers": layers, "hidden_size": hidden}
    return Checkpoint(Path("none"), "none", None, config, tensors)


def said(checkpoint: Checkpoint, spelled: str) -> float:
    recipe = parse_recipe(spelled)
    costs = method(recipe.method).costs_of(recipe)
    return conversion_memory(checkpoint, costs, "full") / 1e9


@pytest.mark.parametrize(("spelled", "measured_gb"), [("gptq-int4", 2.29), ("awq-int4", 1.46)])
def test_smollm2_as_measured(spelled: str, measured_gb: float) -> None:
    """SmolLM2-135M, 32,768 tokens, one thread; between a tenth too little and a quarter too much."""
    assert 0.9 < said(shaped(30, 576, 1536, 49152), spelled) / measured_gb < 1.25


def test_a_model_is_streamed_by_the_engine_of_this_program_only() -> None:
    large = shaped(80, 8192, 28672, 128256)
    whole = 4 * large.parameters / 1e9
    for spelled in ("gptq-int4", "awq-int4"):
        assert said(large, spelled) < 0.6 * whole
        assert said(large, f"{spelled}:engine=gptqmodel") > whole
