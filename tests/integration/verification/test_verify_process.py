"""An artifact is opened in a process that has imported what a stranger's would; experts that transformers
keeps in one tensor."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from quantize import convert
from quantize.artifact.artifact import Artifact
from quantize.errors import BadInput, StepFailed
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.runtimes.opening import open_runtime
from quantize.sources.opening import open_checkpoint
from quantize.verification.process import KeptProcess, Opened

pytest.importorskip("gptqmodel")

CPU = RunOptions(device="cpu", progress=False)
ROWS = np.arange(1, 33)[None]
FEW = CalibrationOptions(tokens=512, sequence_length=64)


@pytest.fixture(scope="module")
def experts(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-MoE with four experts of which no token ever chooses the last."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=256, moe_intermediate_size=128,
        num_hidden_layers=1, head_dim=64,
        num_attention_heads=2, num_key_value_heads=1, num_experts=4, num_experts_per_tok=1,
        decoder_sparse_step=1,
        max_position_embeddings=128, norm_topk_prob=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(
                    torch.randn_like(parameter)
                    * (0.7 if "embed" in name else 1.2 / parameter.shape[-1] ** 0.5)
                )
        gate = model.model.layers[0].mlp.gate.weight
        gate[1], gate[3] = -gate[0], 0
    folder = tmp_path_factory.mktemp("experts") / "source"
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_checkpoint / name, folder / name)
    return folder


@pytest.fixture(scope="module", params=["gptq-int4", "awq-int4", "gptq-int4:engine=gptqmodel"])
def made(request: pytest.FixtureRequest, experts: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return convert(experts, request.param, tmp_path_factory.mktemp("made") / "out", run=CPU, calibration=FEW)


def test_experts_are_verified_and_said_to_be_the_engines_own(made: Artifact) -> None:
    checks = {check.name: check for check in made.manifest.verification.checks}
    assert made.verified == "full"
    assert "equal to what the engine computed" in checks["weights"].detail
    assert "in a separate process" in checks["opens"].detail
    assert (checks["distance to source"].value or 0) < 0.3
    assert made.manifest.loads_in[0] == "gptqmodel"
    assert "transformers" not in made.manifest.loads_in
    assert any("GPTQModel.load" in note.what for note in made.manifest.notes)


def test_an_expert_that_no_token_reached_is_noted(made: Artifact) -> None:
    """This program's engine takes the statistics of all experts; GPTQModel rounds it to nearest."""
    mine = "engine" not in made.manifest.recipe
    words = "tokens and of all experts of its layer" if mine else "rounded to nearest"
    noted = {note.tensor.removesuffix(".weight") for note in made.manifest.notes if words in note.what}
    assert {f"model.layers.0.mlp.experts.3.{name}_proj" for name in ("gate", "up", "down")} <= noted
    assert "model.layers.0.self_attn.q_proj" not in noted


def test_another_process_gives_the_numbers_of_the_file(made: Artifact, experts: Path, tmp_path: Path) -> None:
    """What transformers fills with random numbers is far off (0.6); and the source still opens beside it."""
    opened = Opened(made.folder, CPU, ROWS, tmp_path)
    served: list[np.ndarray] = []
    opened.logits(ROWS, 0, lambda row, first, logits: served.append(np.array(logits)))
    for _ in range(2):  # before and after GPTQModel has opened its own here
        source: list[np.ndarray] = []
        with open_runtime(experts, CPU, exact=True) as runtime:
            runtime.logits(ROWS, 0, lambda row, first, logits, kept=source: kept.append(np.array(logits)))
        p, q = (torch.from_numpy(x[0]).double().log_softmax(-1) for x in (source, served))
        assert float((p.exp() * (p - q)).sum(-1).mean()) < 0.3
        open_runtime(made.folder, CPU, exact=True).close()


def test_a_process_that_cannot_open_it_says_why(made: Artifact, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    shutil.copytree(made.folder, stage)
    (stage / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(StepFailed) as error:
        Opened(stage, CPU, None, tmp_path)
    assert "\n" not in str(error.value)


def test_stacked_experts_are_the_sources_own(experts: Path) -> None:
    """The reference for logits: parameters made of a checkpoint's tensors as transformers' loader makes
    them."""
    from transformers import AutoModelForCausalLM

    from quantize.calibration.layers import streamed_model

    checkpoint = open_checkpoint(experts)
    ids = torch.from_numpy(ROWS)
    with torch.no_grad():
        ours = streamed_model(checkpoint, checkpoint.read_float32)(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(experts, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_one_process_for_several_folders(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Each is answered as by a process of its own, one that cannot be opened too, and after the end of it."""
    source = make_checkpoint(num_hidden_layers=1)
    made = {
        short: convert(source, short, tmp_path / str(number), run=CPU, verify="none").folder
        for number, short in enumerate(("rtn-int4", "rtn-int4:format=awq"))
    }
    empty = tmp_path / "empty"
    empty.mkdir()

    def logits(folder: Path, name: str, **start: KeptProcess) -> np.ndarray:
        (tmp_path / name).mkdir()
        opened, kept = Opened(folder, CPU, ROWS, tmp_path / name, **start), []
        opened.logits(ROWS, 0, lambda row, first, part: kept.append(np.array(part)))
        return np.concatenate(kept)

    with contextlib.closing(KeptProcess()) as start:
        for short, folder in made.items():
            assert np.array_equal(
                logits(folder, f"kept {short}", start=start), logits(folder, f"own {short}")
            )
        first = start._process
        with pytest.raises(BadInput, match=r"config\.json"):
            logits(empty, "kept empty", start=start)
        assert start._process is first
        assert first is not None
        first.kill()
        assert logits(made["rtn-int4"], "killed", start=start).shape == (32, 4096)
        assert logits(made["rtn-int4"], "again", start=start).shape == (32, 4096)
        assert start._process not in (None, first)
