"""float32, float16, bfloat16: exact where they can be, sharded as asked, refused where the dtype cannot hold
a weight."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantize import convert
from quantize.checkpoint.tensors import Entry, StoredTensors, write_folder
from quantize.errors import StepFailed
from quantize.sources.opening import open_checkpoint


@pytest.fixture(scope="module")
def source(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(num_hidden_layers=1, intermediate_size=256)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_and_config(dtype: str, source: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    artifact = convert(source, dtype, tmp_path / "a", verify="tensors")
    assert artifact.manifest.verification.passed
    old, new = load_file(source / "model.safetensors"), load_file(tmp_path / "a" / "model.safetensors")
    assert set(old) == set(new)
    assert all(torch.equal(new[name], old[name].to(getattr(torch, dtype))) for name in old)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    wanted = {**json.loads((source / "config.json").read_text()), "dtype": dtype}
    assert config == wanted
    assert artifact.bits_per_weight == {"float32": 32, "float16": 16, "bfloat16": 16}[dtype]
    assert bool(artifact.manifest.notes) == (dtype == "float16")


def test_float16_cannot_hold_everything(source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][3] = 70000
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        StepFailed,
        match=r"model.norm.weight holds values up to 7.*e\+04, but float16's largest value is 65504",
    ):
        convert(folder, "float16", tmp_path / "a", verify="none")
    assert not (tmp_path / "a").exists()


def test_shards_and_index(tmp_path: Path) -> None:
    arrays = {f"t{i}": np.full((3, 5), i, np.float32) for i in range(5)}
    entries = [Entry(name, "F32", (3, 5)) for name in arrays]
    total = write_folder(tmp_path, entries, lambda name: arrays[name], shard_bytes=130)
    assert total == 300
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    from safetensors import safe_open

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "np") as opened:
            np.testing.assert_array_equal(opened.get_tensor(name), arrays[name])
    stored = StoredTensors(tmp_path)
    assert all((stored.float32(name) == arrays[name]).all() for name in arrays)


def test_a_converted_folder_is_a_checkpoint_again(source: Path, tmp_path: Path) -> None:
    convert(source, "float32", tmp_path / "a", verify="none")
    again = convert(tmp_path / "a", "bfloat16", tmp_path / "b", verify="none")
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == (
        source / "model.safetensors"
    ).read_bytes() or (open_checkpoint(tmp_path / "b").parameters == open_checkpoint(source).parameters)
    for name in open_checkpoint(source).tensors:
        np.testing.assert_array_equal(
            open_checkpoint(again.folder).read(name), open_checkpoint(source).read(name)
        )
