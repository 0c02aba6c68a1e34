"""Tensors beside the model's own weights, taken through a conversion."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from quantize.checkpoint.tensors import StoredTensors
from quantize.conversion import convert
from quantize.sources.opening import open_checkpoint


def test_an_artifact_holds_the_models_weights_and_says_what_was_left_alone(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(demo_checkpoint, tmp_path / "model")
    plain = open_checkpoint(tmp_path / "model")
    name = "model.layers.0.mlp.down_proj.weight"
    save_file({name: plain.read_float32(name) * 0.5}, tmp_path / "model" / "model_1.safetensors")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    artifact = convert(tmp_path / "model", "float32", tmp_path / "out", verify="tensors")
    np.testing.assert_array_equal(StoredTensors(tmp_path / "out").float32(name), plain.read_float32(name))
    assert "not used: model_1.safetensors" in [note.what for note in artifact.manifest.notes]
    # Other bytes there are the same source.
    save_file({name: np.full((2, 3), 2, np.float32)}, tmp_path / "model" / "model_1.safetensors")
    assert open_checkpoint(tmp_path / "model").digest == artifact.manifest.source.digest
