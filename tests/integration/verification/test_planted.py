"""What likeness to the source was meant to catch is planted in what the native engine wrote, and found
exactly: tensors, experts, groups and rows that changed places, after the computation and before it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from quantize.artifact.artifact import Check
from quantize.calibration.windows import load_calibration
from quantize.checkpoint.tensors import Entry, StoredTensors, write_folder
from quantize.engines.base import Computed, Conversion
from quantize.methods.base import Work
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.sources.opening import open_checkpoint
from quantize.verification.weights import check_weights

CPU = RunOptions(device="cpu", progress=False)
LAYER = "model.layers.0."
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def experts(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-MoE with four experts, which differ little from one another: 2 % of their size."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=1,
        head_dim=32, num_attention_heads=2, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        decoder_sparse_step=1, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter.copy_(parameter[:1] + 0.02 * parameter)
    folder = tmp_path_factory.mktemp("experts") / "source"
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_checkpoint / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def made(experts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Path, Conversion]:
    checkpoint = open_checkpoint(experts)
    work = plan(checkpoint, parse_recipe("gptq-int4:engine=native,group_size=32"))
    text = load_calibration(checkpoint, CalibrationOptions(tokens=512, sequence_length=64), CPU)
    stage = tmp_path_factory.mktemp("made")
    return work, stage, work.write(stage, CPU, text)


def weights_check(work: Work, stage: Path, conversion: Conversion) -> Check:
    return check_weights(work, stage, conversion, None).checks[0]


def test_what_was_written_is_what_was_computed_of_the_source(made: tuple[Work, Path, Conversion]) -> None:
    work, stage, conversion = made
    check = weights_check(work, stage, conversion)
    assert check.passed, check.detail
    assert conversion.computed is not None
    quantized = [name for name in work.checkpoint.tensors if name in work.expected]
    assert quantized
    assert all(name in conversion.computed and conversion.computed.has_source(name) for name in quantized)


def exchange(arrays: Arrays, mine: str, theirs: str) -> None:
    moved = [name for name in arrays if mine in name and not name.endswith("g_idx")]
    assert moved
    for name in moved:
        other = name.replace(mine, theirs)
        arrays[name], arrays[other] = arrays[other], arrays[name]


def two_tensors(arrays: Arrays) -> None:
    exchange(arrays, "self_attn.k_proj.", "self_attn.v_proj.")


def two_experts(arrays: Arrays) -> None:
    exchange(arrays, "experts.1.", "experts.2.")


def scales_of_another_group(arrays: Arrays) -> None:
    scales = arrays[f"{LAYER}mlp.experts.3.down_proj.scales"]
    scales[[0, 1]] = scales[[1, 0]]


def two_rows(arrays: Arrays) -> None:
    for kind in ("qweight", "scales"):
        values = arrays[f"{LAYER}self_attn.o_proj.{kind}"]
        values[:, [4, 5]] = values[:, [5, 4]]


def one_code(arrays: Arrays) -> None:
    arrays[f"{LAYER}self_attn.q_proj.qweight"][3, 7] ^= 1 << 12


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (two_tensors, "self_attn.k_proj"),
        (two_experts, "experts.1."),
        (scales_of_another_group, "experts.3.down_proj"),
        (two_rows, "self_attn.o_proj.weight: row 4 and 1 more"),
        (one_code, "self_attn.q_proj.weight: row 7 is"),
    ],
)
def test_damage_to_the_file(
    made: tuple[Work, Path, Conversion], damage: Callable[[Arrays], None], named: str, tmp_path: Path
) -> None:
    work, stage, conversion = made
    shutil.copytree(stage, tmp_path / "stage")
    stored = StoredTensors(stage)
    arrays = {name: np.array(stored.raw(name)) for name in stored}
    damage(arrays)
    entries = [Entry(name, info.dtype, arrays[name].shape) for name, info in stored.info.items()]
    write_folder(tmp_path / "stage", entries, lambda name: arrays[name])
    check = weights_check(work, tmp_path / "stage", replace(conversion, sha256={}))
    assert not check.passed
    assert named in check.detail or (damage is two_tensors and "self_attn.v_proj" in check.detail)
    assert "is not what the engine computed" in check.detail


def test_experts_that_changed_places_before_they_were_quantized(made: tuple[Work, Path, Conversion]) -> None:
    """The file is then what was computed, and a likeness that is 98 % anybody's tells nothing."""
    work, stage, conversion = made
    first, second = (f"{LAYER}mlp.experts.{number}.up_proj.weight" for number in (1, 2))
    computed = Computed()
    for name, values in work.read(stage):
        computed.add(name, values)
        taken = {first: second, second: first}.get(name, name)
        computed.took(name, work.checkpoint.read_float32(taken))
    check = weights_check(work, stage, replace(conversion, computed=computed))
    assert not check.passed
    assert check.detail.startswith(f"{first}: row 0 was quantized from something else than its source")
