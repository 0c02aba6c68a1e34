"""``quantwright compare``: what was planted is what is found, across formats."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from quantize import convert
from quantize.artifact.artifact import Artifact
from quantize.commands.compare import compare as command
from quantize.errors import BadInput, StepFailed
from quantize.gguf.container.reader import read_gguf
from quantize.inspection import comparison
from quantize.inspection.comparison import Comparison, compare
from quantize.recipe import RunOptions

RUN = RunOptions(device="cpu", threads=1, progress=False)
UP = "model.layers.0.mlp.up_proj.weight"


def spoil(source: Path, target: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """A copy in float32 whose tensors ``change`` may alter."""
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file

    shutil.copytree(source, target)
    file = target / "model.safetensors"
    tensors = {name: value.float().numpy() for name, value in load_torch(file).items()}
    change(tensors)
    whole = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
    save_file(whole, file, metadata={"format": "pt"})
    return target


def errors(found: Comparison) -> dict[str, float]:
    return {p.name: p.difference.error for p in found.pairs if p.difference is not None}


def test_a_model_is_equal_to_itself_whatever_holds_it(
    source: Path, made: Callable[[str], Artifact], tmp_path: Path
) -> None:
    for other in (source, made("gguf-bf16").folder, spoil(source, tmp_path / "same", lambda _: None)):
        found = compare(str(other), str(source))
        assert found.equal
        assert found.tokenizer is not None
        assert (found.tokenizer.differ, found.tokenizer.templates_equal, found.settings) == (0, True, [])
        assert found.tokenizer.texts > 100


@pytest.mark.parametrize(
    ("short", "needs", "kind", "low", "high"),
    [
        # random weights, nearly normal: the error of b bits in groups is near to that of a uniform grid
        ("gguf-q8_0", "", "Q8_0", 0.002, 0.01),
        ("gguf-q4_k_m", "", "Q4_K", 0.03, 0.12),
        ("rtn-int4", "", "int4 g128", 0.05, 0.15),
        ("ct-w4a16", "", "int4 g128", 0.05, 0.15),
        ("ct-nvfp4a16", "", "fp4 g16", 0.05, 0.15),
        ("quanto-int8", "optimum.quanto", "int8", 0.002, 0.02),
        ("bnb-nf4", "bitsandbytes", "nf4", 0.05, 0.15),
        ("torchao-int8", "torchao", "int8", 0.002, 0.02),
        ("rtn-int4:format=awq", "", "int4 g128", 0.05, 0.15),
    ],
)
def test_every_format_against_its_source(
    source: Path, made: Callable[[str], Artifact], short: str, needs: str, kind: str, low: float, high: float
) -> None:
    if needs:
        pytest.importorskip(needs)
    found = compare(str(made(short).folder), str(source))
    assert not any(found.only)
    pair = next(pair for pair in found.pairs if pair.name == UP)
    assert pair.kinds == (kind, "BF16")
    assert low < errors(found)[UP] < high
    norm = "model.norm.weight"
    assert errors(found)[norm] == 0
    turned = compare(str(source), str(made(short).folder))
    assert {p.name: p.kinds[::-1] for p in turned.pairs} == {p.name: p.kinds for p in found.pairs}
    assert errors(turned)[UP] == pytest.approx(errors(found)[UP], rel=0.2)


def test_our_reader_of_a_gguf_is_the_reference_of_its_error(
    source: Path, made: Callable[[str], Artifact]
) -> None:
    """The error of a tensor that GGUF stores as it is, from ggml's own numbers."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    path = made("gguf-q4_k_m").gguf
    assert path is not None
    tensor = next(t for t in GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    read = dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    import torch
    from safetensors.torch import load_file as load_torch

    weights = load_torch(source / "model.safetensors")[UP].to(torch.float64).numpy()
    expected = np.linalg.norm(read - weights) / np.linalg.norm(weights)
    assert errors(compare(str(path), str(source)))[UP] == pytest.approx(expected, rel=1e-9)


def test_planted_differences_are_found_and_no_others(source: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        q, o = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qo")
        tensors[q], tensors[o] = tensors[o], tensors[q]  # swapped
        tensors[UP][17] *= 1.5
        tensors["model.norm.weight"][3] = np.nan
        tensors["model.extra.weight"] = np.ones((2, 2), np.float32)
        del tensors["model.layers.0.mlp.down_proj.weight"]
        gate = "model.layers.0.mlp.gate_proj.weight"
        tensors[gate] = tensors[gate][:-1]

    spoiled = spoil(source, tmp_path / "spoiled", change)
    config = json.loads((spoiled / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (spoiled / "config.json").write_text(json.dumps(config))
    found = compare(str(spoiled), str(source))
    assert found.only == (["model.extra.weight"], ["model.layers.0.mlp.down_proj.weight"])
    changed = {p.name: p.difference for p in found.pairs if p.difference is None or not p.difference.equal}
    assert set(changed) == {
        UP,
        "model.norm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
    }
    q, up = changed["model.layers.0.self_attn.q_proj.weight"], changed[UP]
    assert q is not None
    assert up is not None
    assert abs(q.cosine) < 0.05  # of two random matrices
    assert (up.worst_row, round(up.worst_row_error, 6)) == (17, 0.5)
    norm = changed["model.norm.weight"]
    assert norm is not None
    assert norm.not_finite == 1
    assert {s.name: (s.first, s.second) for s in found.settings} == {
        "rope type": ("linear", "default"),
        "rope factor": ("2.0", None),
    }
    done = CliRunner().invoke(command, [str(spoiled), str(source), "--top", "2", "--json"])
    assert done.exception is None, done.exception
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["equal"] is False
    assert len(document["pairs"]) == len(found.pairs)
    assert "model.layers.0.mlp.gate_proj.weight" in done.stdout  # other shapes come first
    assert "setting    rope type: linear and default" in done.stdout


def test_a_tokenizer_that_splits_otherwise(source: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "other"))
    data = json.loads((other / "tokenizer.json").read_text())
    data["model"]["merges"] = data["model"]["merges"][:100]
    (other / "tokenizer.json").write_text(json.dumps(data))
    (other / "chat_template.jinja").write_text("{{ messages }}")
    found = compare(str(other), str(source)).tokenizer
    assert found is not None
    assert found.differ > 50
    assert found.templates_equal is False
    assert " and " in found.example


def test_two_gguf_files_by_their_own_names(made: Callable[[str], Artifact], tmp_path: Path) -> None:
    q4, q8 = made("gguf-q4_k_m").gguf, made("gguf-q8_0").gguf
    assert q4 is not None
    assert q8 is not None
    assert compare(str(q4), str(q4)).equal
    found = compare(str(q4), str(q8))
    assert {p.name for p in found.pairs} == set(read_gguf(q4).tensors)
    assert (found.settings, found.tokenizer and found.tokenizer.differ) == ([], 0)
    raw = bytearray(q8.read_bytes())
    at = raw.index(b"llama.rope.dimension_count") + len(b"llama.rope.dimension_count") + 4
    raw[at] ^= 2
    other = tmp_path / "other.gguf"
    other.write_bytes(raw)
    (setting,) = compare(str(other), str(q8)).settings
    assert setting.name == "llama.rope.dimension_count"


def test_two_folders_that_are_read_as_streams(
    made: Callable[[str], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    gptq, awq = str(made("rtn-int4").folder), str(made("rtn-int4:format=awq").folder)
    found = compare(gptq, awq)
    assert not any(found.only)
    assert found.equal  # the same codes and scales, packed along the other side
    assert found.pairs[0].kinds
    monkeypatch.setattr(comparison, "WAITING_BYTES", 4 * 4096 * 256)  # the embedding alone
    wider = str(made("rtn-int4:group_size=64").folder)
    assert 0 < errors(compare(gptq, wider))[UP] < 0.2  # the same order: nothing waits


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from quantize.inspection.sides import Side

    class Ordered(Side):
        def stream(self) -> Any:
            names = "abcd" if self.model == "up" else "dcba"
            return ((name, np.zeros(100, np.float32)) for name in names)

    sides = Ordered("up", {}), Ordered("down", {})
    only: tuple[list[str], list[str]] = ([], [])
    pairs = comparison._both_streamed(*sides, only)
    assert sorted(name for name, *_ in pairs) == list("abcd")
    assert only == ([], [])
    monkeypatch.setattr(comparison, "WAITING_BYTES", 500)
    with pytest.raises(StepFailed, match="compare each with their source"):
        list(comparison._both_streamed(*sides, only))


def test_a_tied_head_that_is_stored_apart(
    source: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    pytest.importorskip("optimum.quanto")
    made = convert(source, "quanto-int8:lm_head=true", tmp_path / "q", verify="none", run=RUN)
    found = compare(str(made.folder), str(source))
    assert not any(found.only)
    assert 0 < errors(found)["lm_head.weight"] < 0.02  # against the embedding that it was made of


def test_what_cannot_be_compared(source: Path, made: Callable[[str], Artifact], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    nf4 = str(made("bnb-nf4").folder)
    with pytest.raises(BadInput, match="compare it with its source"):
        compare(nf4, nf4)
    with pytest.raises(BadInput, match="not a Hub id"):
        compare(str(tmp_path / "none"), str(source))
