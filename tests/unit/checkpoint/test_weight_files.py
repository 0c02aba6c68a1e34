"""Which files count as a model's weights, and what a safetensors header may say."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged, faults, mutations
from safetensors.numpy import save_file

from quantize.checkpoint.safetensors_header import MAX_HEADER_BYTES, read_raw, read_safetensors_header
from quantize.checkpoint.tensors import StoredTensors
from quantize.checkpoint.weight_files import read_weights, weight_files
from quantize.errors import BadInput, Unsupported
from quantize.hf.load import _read_state
from quantize.sources.opening import open_checkpoint

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def store(path: Path, value: float, *names: str) -> None:
    save_file({name: np.full((2, 3), value, np.float32) for name in names}, path)


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def old_shards(folder: Path) -> None:
    store(folder / SHARDS[0], 2, "a")
    store(folder / SHARDS[1], 2, "b")
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1]})


def ema_copy(folder: Path) -> None:
    store(folder / "model_1.safetensors", 2, "a", "b")


def mistral(folder: Path) -> None:
    store(folder / "consolidated.safetensors", 2, "layers.0.attention.wq.weight")


def adapter(folder: Path) -> None:
    store(folder / "adapter_model.safetensors", 2, "base_model.model.a.lora_A.weight")
    store(folder / "optimizer.safetensors", 2, "a")


@pytest.mark.parametrize("beside", [old_shards, ema_copy, mistral, adapter])
def test_what_transformers_loads_and_nothing_beside_it(beside: Any, tmp_path: Path) -> None:
    beside(tmp_path)
    store(tmp_path / "model.safetensors", 1, "a", "b")
    found = weight_files(tmp_path)
    others = {path.name for path in tmp_path.glob("*.safetensors")} - {"model.safetensors"}
    assert ([path.name for path in found.files], set(found.left_alone), found.usual) == (
        ["model.safetensors"],
        others,
        True,
    )
    stored = StoredTensors(tmp_path)
    assert set(stored) == {"a", "b"}
    assert stored.float32("a")[0, 0] == 1
    import torch

    assert set(_read_state(tmp_path, torch.float32)) == {"a", "b"}


def test_shards_of_an_index_and_nothing_beside_them(tmp_path: Path) -> None:
    old_shards(tmp_path)
    mistral(tmp_path)
    tensors, found = read_weights(tmp_path)
    assert set(tensors) == {"a", "b"}
    assert found.left_alone == ("consolidated.safetensors",)


def test_without_the_usual_names_only_what_is_beyond_doubt(tmp_path: Path) -> None:
    store(tmp_path / "mymodel.safetensors", 1, "a")
    adapter(tmp_path)
    found = weight_files(tmp_path)
    assert ([path.name for path in found.files], found.usual) == (["mymodel.safetensors"], False)
    store(tmp_path / "other.safetensors", 1, "a")
    with pytest.raises(BadInput, match=r"which of mymodel.safetensors, other.safetensors is the model"):
        weight_files(tmp_path)
    for name in ("mymodel.safetensors", "other.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(
        BadInput, match=r"no .safetensors weights.*adapter_model.safetensors is not in transformers' form"
    ):
        weight_files(tmp_path)
    old_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert [path.name for path in weight_files(tmp_path).files] == list(SHARDS)
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(BadInput, match=f"{SHARDS[1]} is missing"):
        weight_files(tmp_path)


def test_what_the_config_names_goes_before_all(tmp_path: Path) -> None:
    store(tmp_path / "model.safetensors", 1, "a")
    store(tmp_path / "other.safetensors", 2, "a")
    assert read_weights(tmp_path, "other.safetensors")[0]["a"].file.name == "other.safetensors"
    for name in ("../other.safetensors", "other.bin", "none.safetensors"):
        with pytest.raises(BadInput, match=name.removeprefix("../")):
            weight_files(tmp_path, name)


@pytest.mark.parametrize(
    "weight_map",
    [None, [], {}, "x", {"a": 1}, {"a": None}, {"a": "../m.safetensors"}, {"a": "/etc/passwd"}, {"a": "no"}],
)
def test_an_index_that_is_none(weight_map: Any, tmp_path: Path) -> None:
    write_index(tmp_path, weight_map)
    store(tmp_path / "m.safetensors", 1, "a")
    with pytest.raises(BadInput):
        read_weights(tmp_path)


def write(path: Path, header: Any, data: bytes = b"\0" * 24) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": entry(dtype="F31")}, "is of type F31"),
        ({"a": entry(dtype=[])}, "is of type"),
        ({"a": entry(shape=[2, -3])}, "whole numbers"),
        ({"a": entry(shape=[2, 3.0])}, "whole numbers"),
        ({"a": entry(shape=[2, True, 3])}, "whole numbers"),
        ({"a": entry(shape=[1] * 40)}, "at most 16"),
        ({"a": entry(shape=[0, 1 << 62], offsets=[0, 0])}, "too large for any file"),
        ({"a": entry(shape=[2, 2])}, "does not fill"),
        ({"a": entry(offsets=[0, 48], shape=[2, 6])}, "truncated"),
        ({"a": entry(offsets=[24, 0])}, "does not fill"),
        ({"a": entry(), "b": entry(shape=[1], offsets=[8, 12])}, "overlaps"),
        ({"a": entry(), "b": entry()}, "overlaps"),
        ({"a": entry(shape=[1], offsets=[20, 24])}, "leaves a gap"),
        ({"a": entry(shape=[1], offsets=[0, 4])}, "belong to no tensor"),
        ({"a": entry(), "__metadata__": {"x": 1}}, "map of texts"),
        ({"a\nb": entry()}, "invalid name"),
        ({"a": None}, "not described by an object"),
        ([], "not an object"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" + b"," * 3_000_000, "entries"),
    ],
)
def test_headers_that_the_format_does_not_allow(header: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says) as error:
        read_safetensors_header(write(tmp_path / "a.safetensors", header))
    assert "\n" not in str(error.value)


def test_a_header_has_a_ceiling(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="more than the limit"):
        read_safetensors_header(write(tmp_path / "a.safetensors", b" " * (MAX_HEADER_BYTES + 1)))


def test_headers_fuzzed(tmp_path: Path) -> None:
    """Whatever is accepted can be mapped to its last byte."""
    save_file(
        {"a": np.ones((2, 3), np.float32), "b": np.ones((4,), np.int8), "c": np.ones((), np.float64)},
        tmp_path / "a",
    )
    raw = (tmp_path / "a").read_bytes()
    length = 8 + int.from_bytes(raw[:8], "little")
    header, path = json.loads(raw[8:length]), tmp_path / "x.safetensors"

    def attempt(case: Any) -> None:
        if isinstance(case, bytes):
            path.write_bytes(case)
        else:
            write(path, case, raw[length:])
        for info in read_safetensors_header(path).values():
            read_raw(info).tobytes()

    assert faults(attempt, [*mutations(header), *damaged(raw, 400, within=length)], seconds=20) == []


def integers(name: str, dtype: type, shape: tuple[int, ...] = (4, 4)) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, dtype)}


@pytest.mark.parametrize(
    ("tensors", "refused"),
    [
        (integers("gpt_neox.layers.0.attention.bias", np.uint8, (1, 1, 8, 8)), ""),
        (integers("gpt_neox.layers.0.attention.bias", np.bool_, (1, 1, 8, 8)), ""),
        (integers("h.0.attn.bias", np.uint8, (1, 1, 8, 8)), ""),
        (integers("embeddings.position_ids", np.int64, (1, 8)), ""),
        (integers("layers.0.gate.tid2eid", np.int64), ""),
        (integers("layers.0.mlp.up_proj.weight", np.uint8), "already quantized"),
        (integers("layers.0.mlp.up_proj.qweight", np.int32), "already quantized"),
        (integers("layers.0.mlp.up_proj.weight", np.int16), "stored as I16"),
        (integers("layers.0.mlp.up_proj.weight", np.int32), "stored as I32"),
    ],
)
def test_masks_are_no_sign_of_quantization_and_integers_are_no_weights(
    tensors: dict[str, np.ndarray], refused: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": np.ones((2, 2), np.float16)} | tensors, tmp_path / "model.safetensors")
    if refused:
        with pytest.raises(Unsupported, match=refused):
            open_checkpoint(tmp_path, tokenizer=False)
    else:
        checkpoint = open_checkpoint(tmp_path, tokenizer=False)
        assert checkpoint.dtype == "F16"
        assert set(checkpoint.tensors) == {"w", *tensors}


def test_all_that_decides_a_conversion_is_in_the_digest(demo_checkpoint: Path, tmp_path: Path) -> None:
    """Also templates with names, and how an embedding is pooled: a job must not call another model done."""
    folder = tmp_path / "model"
    shutil.copytree(demo_checkpoint, folder)
    digests = [open_checkpoint(folder).digest]
    assert digests[0] == open_checkpoint(demo_checkpoint).digest
    for name in (
        "modules.json",
        "1_Pooling/config.json",
        "additional_chat_templates/tools.jinja",
        "additional_chat_templates/rag.jinja",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("[]" if name == "modules.json" else "{}")
        digests.append(open_checkpoint(folder).digest)
    assert len(set(digests)) == len(digests)
