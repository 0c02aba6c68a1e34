"""The matrices that are found lie where they are said to lie, in the files and in the model that transformers
loads of them, for every family of decoders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_cases import CASES, FEW, make_decoder

from quantize.hf.matrices import Place, decoder_linears
from quantize.sources.opening import open_checkpoint

OTHERS = (
    "aria_text", "dbrx", "falcon", "gemma3_text", "gpt_neox", "jetmoe", "llama4_text", "mamba", "minimax",
    "mixtral", "nemotron_h",
)  # fmt: skip


def check(model_type: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(make_decoder(model_type, folder))
    found = decoder_linears(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    parameters = dict(model.named_parameters())
    names = [linear.name for linear in found]
    assert names
    assert len(set(names)) == len(names)
    assert len(found.layers) == len(found.layer_names) >= 2
    modules = dict(model.named_modules())
    held, stored = 0, {}
    for name, layer in zip(found.layer_names, found.layers, strict=True):
        assert name in modules
        for linear in layer:
            assert linear.parameter.startswith(f"{name}.")
            array = checkpoint.read_float32(linear.source)
            values = linear.take(array)
            assert values.shape == (linear.outputs, linear.inputs)
            parameter = parameters[linear.parameter]
            assert np.array_equal(values, linear.held(parameter).detach().numpy()), linear.name
            held += values.size
            linear.give(stored.setdefault(linear.source, np.full(array.shape, np.nan, np.float32)), values)
            linear.place(parameter, torch.full(values.shape, np.nan))
    # Together they are whole tensors, and all of the layers' but those that it names.
    for source, array in stored.items():
        assert np.array_equal(array, checkpoint.read_float32(source)), source
    kept = dict(found.kept)
    matrices = [
        (name, p) for name, p in parameters.items()
        if p.ndim > 1 and any(name.startswith(f"{layer}.") for layer in found.layer_names)
    ]  # fmt: skip
    assert not set(kept) & set(stored)
    assert held == sum(int(torch.isnan(p).sum()) for _, p in matrices)
    left = sum(p.numel() for _, p in matrices) - held
    assert left == sum(int(np.prod(checkpoint.tensors[name].shape)) for name in kept)


@pytest.mark.parametrize("model_type", [*FEW, *OTHERS])
def test_matrices_lie_where_they_are_said_to(model_type: str, tmp_path: Path) -> None:
    check(model_type, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("model_type", sorted(set(CASES) - {*FEW, *OTHERS}))
def test_matrices_of_every_family(model_type: str, tmp_path: Path) -> None:
    check(model_type, tmp_path)


def test_names_of_experts_are_those_of_the_files(tmp_path: Path) -> None:
    one_by_one = decoder_linears(open_checkpoint(make_decoder("qwen3_moe", tmp_path / "a")))
    assert one_by_one.layers[0][4].name == "model.layers.0.mlp.experts.0.gate_proj"
    stacked = decoder_linears(open_checkpoint(make_decoder("gpt_oss", tmp_path / "b")))
    third = next(linear for linear in stacked if linear.name == "model.layers.0.mlp.experts.3.up_proj")
    assert third.source == third.parameter == "model.layers.0.mlp.experts.gate_up_proj"
    assert third.in_source == Place(3, (1, 192, 2), transposed=True)
    assert third.matrix == 3


def test_routers_are_kept_and_a_tied_head_is_none(tmp_path: Path) -> None:
    found = decoder_linears(open_checkpoint(make_decoder("qwen2_moe", tmp_path / "a")))
    reasons = dict(found.kept)
    assert all(
        "chooses experts" in reasons[f"model.layers.1.mlp.{n}.weight"] for n in ("gate", "shared_expert_gate")
    )
    assert found.head
    assert found.head.name == "lm_head"
    assert decoder_linears(open_checkpoint(make_decoder("gpt2", tmp_path / "b"))).head is None


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2"])
def test_told_from_the_config_is_what_is_built(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(make_decoder(model_type, tmp_path, num_key_value_heads=1))
    told: Any = decoder_linears.__wrapped__(checkpoint)
    monkeypatch.setattr("quantize.hf.matrices.parameters", lambda config: None)
    assert decoder_linears.__wrapped__(checkpoint) == told
