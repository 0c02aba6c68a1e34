"""Our tensors against llama.cpp's own quantizer run on the lossless file of the same model: equal, byte for
byte."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.llama_quantize import quantize_file
from quantize.gguf.container.reader import GgufFile, read_gguf
from quantize.kernels.block_types import FILE_TYPES, TENSOR_TYPES
from quantize.methods.gguf import Gguf
from quantize.methods.gguf_recipe import PRESET_TYPES, GgufRecipe
from quantize.recipe import RunOptions
from quantize.sources.opening import open_checkpoint


def convert(checkpoint: Path, stage: Path, **recipe: object) -> Path:
    stage.mkdir(parents=True, exist_ok=True)
    parsed = GgufRecipe.model_validate(recipe)
    work = Gguf().plan(open_checkpoint(checkpoint), parsed)
    work.write(stage, RunOptions(threads=2, progress=False), None)
    (file,) = stage.glob("*.gguf")
    return file


def assert_same_tensors(ours: GgufFile, theirs: GgufFile) -> None:
    assert list(ours.tensors) == list(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert (ours.tensors[name].kind, ours.tensors[name].shape) == (tensor.kind, tensor.shape), name
        assert np.array_equal(ours.raw(name), theirs.raw(name)), name


@pytest.fixture(scope="module", params=["even, tied", "odd rows, eight layers"])
def source(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Path:
    if request.param == "even, tied":
        return make_checkpoint(tie_word_embeddings=True)
    odd = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 8}
    return make_checkpoint(**odd, num_attention_heads=3, num_key_value_heads=1, head_dim=32)


@pytest.fixture(scope="module")
def lossless(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(source, tmp_path_factory.mktemp("lossless"), type="bf16")


QUANTIZED = [name for name in PRESET_TYPES if FILE_TYPES[name].quantized]


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_type_equals_llamacpp(source: Path, lossless: Path, tmp_path: Path, name: str) -> None:
    ours = read_gguf(convert(source, tmp_path / "ours", type=name, quantized_by=None))
    quantize_file(lossless, tmp_path / "theirs.gguf", FILE_TYPES[name].value, threads=2)
    assert_same_tensors(ours, read_gguf(tmp_path / "theirs.gguf"))


def test_the_whole_file_equals_llamacpp(source: Path, lossless: Path, tmp_path: Path) -> None:
    """Header included, where nobody signs the file."""
    ours = convert(source, tmp_path / "ours", type="q4_k_m", quantized_by=None)
    quantize_file(lossless, tmp_path / "theirs.gguf", FILE_TYPES["q4_k_m"].value, threads=1)
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("via", ["f16", "f32"])
def test_a_detour_is_reproduced(source: Path, tmp_path: Path, via: str) -> None:
    ours = convert(source, tmp_path / "ours", type="q4_k_m", via=via)
    detour = convert(source, tmp_path / "detour", type=via)
    quantize_file(detour, tmp_path / "theirs.gguf", FILE_TYPES["q4_k_m"].value, threads=2)
    assert_same_tensors(read_gguf(ours), read_gguf(tmp_path / "theirs.gguf"))


def test_overrides_and_pure(source: Path, lossless: Path, tmp_path: Path) -> None:
    chosen = ("ffn_down=q8_0", r"blk\.0\.attn_.*=q5_1")
    ours = convert(source, tmp_path / "ours", type="q4_k_m", tensor_types=chosen)
    pairs = tuple(
        (pattern, TENSOR_TYPES[kind]) for pattern, _, kind in (entry.rpartition("=") for entry in chosen)
    )
    quantize_file(lossless, tmp_path / "theirs.gguf", FILE_TYPES["q4_k_m"].value, tensor_types=pairs)
    assert_same_tensors(read_gguf(ours), read_gguf(tmp_path / "theirs.gguf"))
    pure = convert(source, tmp_path / "pure", type="q5_k_m", pure=True)
    quantize_file(lossless, tmp_path / "pure.gguf", FILE_TYPES["q5_k_m"].value, pure=True)
    assert_same_tensors(read_gguf(pure), read_gguf(tmp_path / "pure.gguf"))


def test_bytes_do_not_depend_on_threads(source: Path, tmp_path: Path) -> None:
    first = convert(source, tmp_path / "a", type="q4_k_m")
    second = convert(source, tmp_path / "b", type="q4_k_m")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
