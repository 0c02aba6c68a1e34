"""Packed sources to recipes of the same grid: the second reader of the result reads exactly what the second
reader of the source reads."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quantize import convert
from quantize.cli import cli
from quantize.errors import BadInput, Unsupported
from quantize.formats.stored import Stored, stored_packed
from quantize.formats.stored_compressed import stored_compressed
from quantize.methods.registry import parse_recipe, plan
from quantize.numerics.packing import pack_bits, unpack_bits
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.sources.opening import open_checkpoint

RUN = RunOptions(device="cpu", progress=False)
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def original(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1)


@pytest.fixture(scope="module")
def made(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The original by a recipe that needs no calibration, once each."""
    folder = tmp_path_factory.mktemp("packed")

    def make(short: str) -> Path:
        out = folder / parse_recipe(short).slug
        if not out.exists():
            convert(original, short, out, verify="none", run=RUN)
        return out

    return make


def stored(folder: Path) -> Stored:
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    return (stored_compressed if said["quant_method"] == "compressed-tensors" else stored_packed)(folder)


def changed(source: Path, folder: Path, tensors: dict[str, torch.Tensor], **said: object) -> Path:
    """A copy of ``source`` with other tensors, and ``said`` in its quantization_config."""
    folder.mkdir()
    for path in source.glob("*.json"):
        if path.name != "manifest.json":
            (folder / path.name).write_bytes(path.read_bytes())
    whole = {**load_file(source / "model.safetensors"), **tensors}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= said
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("rtn-int4", "ct-w4a16"),
        ("rtn-int4:group_size=32", "awq-int4"),
        ("rtn-int4:group_size=-1", "ct-w4a16:group_size=-1"),
        ("rtn-int4:sym=false", "ct-w4a16:sym=false"),
        ("rtn-int4:format=awq", "gptq-int4"),
        ("rtn-int4:format=awq,sym=false", "gptq-int4:sym=false"),
        ("rtn-int4:format=awq,sym=false", "ct-w4a16:sym=false"),
        ("ct-w4a16", "gptq-int4"),
        ("ct-w4a16:group_size=64", "awq-int4"),
        ("ct-w4a16:sym=false", "awq-int4"),
        ("rtn-int8:group_size=-1", "ct-w8a16"),
        ("rtn-int8", "ct-w8a16"),
        ("ct-w8a16", "gptq-int8"),
        ("rtn-int3", "gptq-int3"),
    ],
)
def test_every_weight_is_the_same(
    source: str, short: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = convert(made(source), short, tmp_path / "one", verify="none", run=RUN).manifest
    assert manifest.calibration is None
    notes = [note for note in manifest.notes if note.what.startswith("transcoded from ")]
    assert [note.what.split(": ")[1] for note in notes] == ["7 tensors"]
    meant, found = dict(stored(made(source)).whole()), dict(stored(tmp_path / "one").whole())
    assert meant.keys() == found.keys()
    for name, values in meant.items():
        assert np.array_equal(values.view(np.int32), found[name].view(np.int32)), name


def test_no_text_is_spoken_of_where_none_is_read(
    original: Path, made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not convert_command(made("rtn-int4"), "gptq-int4", tmp_path / "one")
    assert "calibration" not in capsys.readouterr().err
    options = ["--calibration-tokens", "128", "--calibration-length", "32"]
    assert not convert_command(original, "gptq-int4", tmp_path / "two", *options)
    assert "calibration: auto, 128 tokens in windows of 32, seed 0\n" in capsys.readouterr().err


def convert_command(source: Path, short: str, out: Path, *options: str) -> int:
    arguments = ["convert", str(source), "--to", short, "-o", str(out), "--verify", "none", *options]
    return int(cli.main(arguments, standalone_mode=False) or 0)


def test_there_and_back(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Through two other formats and in a runtime; the tensors are those that were there first."""
    pytest.importorskip("compressed_tensors")
    first = made("rtn-int4")
    artifact = convert(first, "ct-w4a16", tmp_path / "ct", run=RUN)
    assert artifact.manifest.verification.level == "full"
    convert(tmp_path / "ct", "awq-int4", tmp_path / "awq", verify="none", run=RUN)
    convert(tmp_path / "awq", "gptq-int4", tmp_path / "gptq", verify="none", run=RUN)
    meant, found = (load_file(folder / "model.safetensors") for folder in (first, tmp_path / "gptq"))
    assert meant.keys() == found.keys()
    assert all(torch.equal(meant[name], found[name]) for name in meant)
    assert artifact.manifest.details["transcoded_from"] == "GPTQ"


def test_version_2_and_the_order_of_groups(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Version 2 stores zero points as they are. Groups of inputs that are no neighbours are read, and not
    taken over."""
    first = made("rtn-int4:sym=false")
    whole = load_file(first / "model.safetensors")
    as_they_are = {}
    for name, words in whole.items():
        if name.endswith(".qzeros"):
            zeros = unpack_bits(np.ascontiguousarray(words.numpy().T), 4) + 1
            as_they_are[name] = torch.from_numpy(np.ascontiguousarray(pack_bits(zeros, 4).T))
    second = changed(first, tmp_path / "v2", as_they_are, checkpoint_format="gptq_v2")
    meant, found = open_checkpoint(first), open_checkpoint(second)
    for name in meant.tensors:
        assert np.array_equal(meant.read(name), found.read(name)), name
    convert(second, "gptq-int4:sym=false", tmp_path / "v1", verify="none", run=RUN)
    again = load_file(tmp_path / "v1" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)

    index = whole[f"{UP}.g_idx"].flip(0).contiguous()
    reordered = changed(first, tmp_path / "act", {f"{UP}.g_idx": index}, desc_act=True)
    with pytest.raises(Unsupported, match=r"up_proj\.weight are not of neighbouring inputs \(act-order\)"):
        convert(reordered, "ct-w4a16:sym=false", tmp_path / "one", run=RUN)
    values = dict(stored(reordered).whole())[f"{UP}.weight"]
    assert np.array_equal(open_checkpoint(reordered).read(f"{UP}.weight"), values)
    artifact = convert(reordered, "rtn-int8", tmp_path / "two", verify="none", run=RUN)
    assert "rounded before this conversion: 7 of GPTQ INT4" in [n.what for n in artifact.manifest.notes]


def refused(folder: Path, short: str, words: str) -> None:
    with pytest.raises(Unsupported, match=words) as caught:
        plan(open_checkpoint(folder), parse_recipe(short))
    assert "convert the original checkpoint, or round it again with" in str(caught.value)


def test_what_cannot_be_said(made: Callable[[str], Path], tmp_path: Path) -> None:
    refused(made("rtn-int4:sym=false"), "gptq-int4", r"zero points beside 8.*\(gptq-int4:sym=false is not\)")
    refused(made("rtn-int4:sym=false"), "ct-w4a16", r"\(ct-w4a16:sym=false is not\)")
    refused(made("rtn-int4"), "ct-w4a16:group_size=32", "in groups of 128 inputs, and it asks for 32")
    refused(made("rtn-int4:group_size=16"), "awq-int4", "groups of 16 inputs are none of 32, 64, 128")
    refused(made("rtn-int4"), "ct-w4a16:ignore=down_proj", r"down_proj.weight is packed and would not be")
    awq = made("rtn-int4:format=awq,sym=false")
    zeros = load_file(awq / "model.safetensors")[f"{UP}.qzeros"] & ~15
    low = changed(awq, tmp_path / "low", {f"{UP}.qzeros": zeros})
    refused(low, "gptq-int4:sym=false", r"has a zero point of 0, and the format holds 1 to 16")
    plan(open_checkpoint(low), parse_recipe("ct-w4a16:sym=false"))
    ct = made("ct-w4a16")
    scales = load_file(ct / "model.safetensors")[f"{UP}.weight_scale"]
    tiny = changed(ct, tmp_path / "tiny", {f"{UP}.weight_scale": scales * 2.0**-20})
    refused(tiny, "gptq-int4", "scales of .*up_proj.weight are BF16, which float16 would round")
    mixed = changed(ct, tmp_path / "mixed", {f"{UP}.weight_scale": scales.half()})
    refused(mixed, "gptq-int4", "up_proj.weight has scales in F16, .* in BF16|in BF16, .* in F16")


def test_what_is_left_stays(made: Callable[[str], Path], tmp_path: Path) -> None:
    """A matrix that the source holds unpacked is not packed."""
    source = made("ct-w4a16:ignore=down_proj")
    artifact = convert(source, "gptq-int4", tmp_path / "one", verify="none", run=RUN)
    whys = {note.tensor: note.why for note in artifact.manifest.notes}
    assert whys["model.layers.0.mlp.down_proj.weight"] == "it is not packed in the source"
    assert "model.layers.0.mlp.down_proj.weight" in load_file(tmp_path / "one" / "model.safetensors")


def test_a_packed_head(original: Path, tmp_path: Path) -> None:
    calibration = CalibrationOptions(source="stdlib", tokens=512, sequence_length=128)
    source = tmp_path / "source"
    convert(original, "gptq-int4:lm_head=true", source, calibration=calibration, verify="none", run=RUN)
    refused(source, "ct-w4a16", "lm_head.weight is packed and would not be")
    convert(source, "gptq-int4:lm_head=true", tmp_path / "one", verify="none", run=RUN)
    meant, found = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "one"))
    assert meant.keys() == found.keys()
    assert all(torch.equal(meant[name], found[name]) for name in meant)


def test_other_recipes_round_again(made: Callable[[str], Path], tmp_path: Path) -> None:
    """With a note: those of another grid, and those that say how codes are chosen."""
    source = made("rtn-int4:format=awq")
    checkpoint = open_checkpoint(source)
    for short in ("rtn-int4", "gptq-int4:order=none", "gptq-int8", "ct-w4a16:by=gptq", "ct-fp8-dynamic"):
        work = plan(checkpoint, parse_recipe(short))
        assert work.value_rounding is None
        assert work.calibrated == work.recipe.calibrated
    artifact = convert(source, "gguf-q8_0", tmp_path / "one", verify="tensors", run=RUN)
    whats = [note.what for note in artifact.manifest.notes]
    assert "rounded before this conversion: 7 of AWQ INT4" in whats
    assert artifact.manifest.source.quantized == "7 of AWQ INT4"


def test_what_is_no_packed_folder(made: Callable[[str], Path], tmp_path: Path) -> None:
    first = made("rtn-int4")
    whole = load_file(first / "model.safetensors")

    def broken(error: type[Exception], words: str, tensors: dict[str, torch.Tensor], **said: object) -> None:
        folder = changed(first, tmp_path / str(len(list(tmp_path.iterdir()))), tensors, **said)
        with pytest.raises(error, match=words):
            open_checkpoint(folder).read(f"{UP}.weight")

    broken(BadInput, "do not fit one another as 4 bits", {f"{UP}.scales": torch.ones(3, 512).half()})
    broken(BadInput, "do not fit one another as 8 bits", {}, bits=8)
    broken(BadInput, "does not map 256 inputs", {f"{UP}.g_idx": whole[f"{UP}.g_idx"] + 7})
    broken(Unsupported, "as GPTQ in the form marlin", {}, checkpoint_format="marlin")
    broken(Unsupported, "as AWQ in the form gemv", {}, quant_method="awq", version="gemv")
    broken(BadInput, "bits is 5", {}, bits=5)
    broken(Unsupported, "taken out of larger tensors", {}, meta={"sources": {"model.x": [2, 3, 4]}})
