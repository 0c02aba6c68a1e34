"""Layers that predict further tokens: in the GGUF where llama.cpp reads them, at no cost to the logits, and
back under the checkpoint's names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ahead_cases import AHEAD, KEPT, add_ahead, make_ahead
from family_cases import CASES, llamacpp_logits, make, write_gguf_f32

from benchmarks.peers.llama_quantize import quantize_file
from quantize.artifact.artifact import Artifact, Manifest
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.cli import cli
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.families.plan import plan
from quantize.kernels.block_types import FILE_TYPES
from quantize.methods.gguf import Gguf
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.recipe import RunOptions
from quantize.sources.gguf_file import open_gguf
from quantize.sources.opening import open_checkpoint

llama_cpp: Any = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs


def without(folder: Path, later: set[str], out: Path) -> Path:
    """The same checkpoint without those tensors."""
    from safetensors.numpy import load_file, save_file

    out.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if name not in later}
    save_file(rest, out / "model.safetensors", metadata={"format": "pt"})
    return out


def check(folder: Path, later: set[str], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder, tokenizer=False)
    family = plan(checkpoint)
    assert not family.left_out, family.notes
    layers = family.kvs[f"{family.architecture}.block_count"][0]
    assert family.kvs[f"{family.architecture}.nextn_predict_layers"][0] == 1
    names = write_gguf_f32(folder, tmp_path / "with.gguf")
    assert {f"blk.{layers - 1}.nextn.{part}.weight" for part in ("eh_proj", "enorm", "hnorm")} <= set(names)
    plain = write_gguf_f32(without(folder, later, tmp_path / "plain"), tmp_path / "without.gguf")
    assert set(names) - set(plain) == {name for name in names if name.startswith(f"blk.{layers - 1}.")}

    ids = np.random.default_rng(3).integers(1, 160, (2, 32))
    both = [llamacpp_logits(tmp_path / f"{each}.gguf", ids) for each in ("with", "without")]
    assert np.array_equal(*both)
    assert _loads_all(tmp_path / "with.gguf"), "with the layers themselves, of which it checks every shape"

    back = open_gguf(tmp_path / "with.gguf", tokenizer=False)
    config = back.config
    told = config.get("num_nextn_predict_layers", config.get("mtp_num_hidden_layers"))
    assert told == 1
    moved = {name for m in family.tensors if m.pure for name in m.sources}
    assert later <= back.tensors.keys()
    for name in later:
        source, found = checkpoint.read_float32(name), back.read_float32(name)
        # norms of which one is subtracted again round; what only moves is there bit for bit
        assert np.array_equal(source, found) if name in moved else np.abs(source - found).max() < 2e-7, name


def _loads_all(path: Path) -> bool:
    parameters = llama_cpp.llama_model_default_params()
    parameters.load_mtp = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if model:
        llama_cpp.llama_model_free(model)
    return bool(model)


@pytest.mark.parametrize("model_type", KEPT)
def test_kept(model_type: str, tmp_path: Path) -> None:
    folder, later = make_ahead(model_type, tmp_path / "source")
    check(folder, later, tmp_path)


def test_kept_with_an_indexer(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.model_type == "deepseek_v32")
    _, folder = make(case, tmp_path / "source")
    check(folder, add_ahead("deepseek_v3", folder), tmp_path)


def test_left_out_with_a_note(tmp_path: Path) -> None:
    """Where llama.cpp has no place, or what it asks for is not all there."""
    assert "ernie4_5_moe" in AHEAD
    folder, later = make_ahead("ernie4_5_moe", tmp_path / "ernie")
    family = plan(Checkpoint.open(folder))
    assert family.left_out == later
    assert "nextn_predict_layers" not in str(family.kvs.keys())
    folder, later = make_ahead("glm4_moe", tmp_path / "glm")
    checkpoint = Checkpoint.open(folder)
    missing = "model.layers.2.hnorm.weight"
    there = {name: info for name, info in checkpoint.tensors.items() if name != missing}
    family = plan(replace(checkpoint, tensors=there))
    assert family.left_out == later - {missing}
    assert [note.what for note in family.notes if note.tensor == "model.layers.2.*"] == [
        f"{len(later) - 1} tensors left out"
    ]


def test_convert_and_verify(tmp_path: Path) -> None:
    """Quantized, opened and held against its source; and in a type that needs importances, which such a
    layer cannot have."""
    wide = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    folder, later = make_ahead("qwen3_5_text", tmp_path / "source", **wide)
    text = tmp_path / "text.txt"
    text.write_text("a b c d e f g h i j k l m n o p q r s t u v w x y z. " * 200)
    options = ["--calibration", str(text), "--calibration-tokens", "256", "--calibration-length", "64"]
    q4, iq2 = (
        _converted(folder, tmp_path / "q4", "gguf-q4_k_m", []),
        _converted(folder, tmp_path / "iq2", "gguf:type=iq2_xs,imatrix=auto", options),
    )
    for manifest, _ in (q4, iq2):
        assert manifest.verification is not None
        assert manifest.verification.level == "full"
        assert later <= {name for each in manifest.details["sources"].values() for name in each}
    quantized = {
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
        "nextn.eh_proj",
    }
    assert {q4[1][f"blk.4.{name}.weight"] for name in quantized} <= {"Q4_K", "Q6_K"}
    least = {iq2[1][f"blk.4.{name}.weight"] for name in quantized - {"attn_v"}}
    assert (least, iq2[1]["blk.4.attn_v.weight"]) == ({"Q4_K"}, "Q2_K")
    assert iq2[1]["blk.3.attn_q.weight"] == "IQ2_XS"
    why = {note.why for note in iq2[0].notes if note.tensor == "mtp.fc.weight"}
    assert any("no text's importances reach it" in each for each in why)


@pytest.mark.parametrize("model_type", ["glm4_moe", "qwen3_next"])
def test_types_are_llama_quantizes(model_type: str, tmp_path: Path) -> None:
    """Byte for byte: the layer counts where the number of layers decides."""
    wide = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256}
    folder, _ = make_ahead(model_type, tmp_path / "source", **wide)
    checkpoint, files = open_checkpoint(folder), {}
    for kind in ("f32", "q4_k_m"):
        stage = tmp_path / kind
        stage.mkdir()
        work = Gguf().plan(checkpoint, GgufRecipe.model_validate({"type": kind, "quantized_by": None}))
        work.write(stage, RunOptions(threads=1, progress=False), None)
        (files[kind],) = stage.glob("*.gguf")
    quantize_file(files["f32"], tmp_path / "theirs.gguf", FILE_TYPES["q4_k_m"].value, threads=1)
    ours, theirs = read_gguf(files["q4_k_m"]), read_gguf(tmp_path / "theirs.gguf")
    assert list(ours.tensors) == list(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].kind == tensor.kind, name
        assert np.array_equal(ours.raw(name), theirs.raw(name)), name


def _converted(folder: Path, out: Path, short: str, options: list[str]) -> tuple[Manifest, dict[str, str]]:
    """Its manifest, and the type of each tensor."""
    command = ["convert", str(folder), "--to", short, "-o", str(out), *options]
    assert not cli.main(command, standalone_mode=False)
    (file,) = out.glob("*.gguf")
    kinds = {name: tensor.kind.name for name, tensor in read_gguf(file).tensors.items()}
    return Artifact.load(out).manifest, kinds
