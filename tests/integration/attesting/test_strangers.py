"""``quantwright attest`` of GGUF files that llama.cpp's own quantizer made: the recipe is read from
the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attesting import attest, change_gguf, verify

from benchmarks.peers.llama_quantize import quantize_file
from quantize import convert
from quantize.artifact.artifact import Artifact
from quantize.errors import BadInput, StepFailed
from quantize.gguf.container.reader import GgufFile, read_gguf
from quantize.gguf.container.writer import Kvs, Planned, write_gguf
from quantize.gguf.importance.file import Entry, ImportanceMatrix, write_imatrix
from quantize.kernels.block_types import FILE_TYPES, Type

from .conftest import RUN

Make = Callable[[str], Artifact]
UP = "blk.0.ffn_up.weight"


def lossless(made: Make, kind: str) -> Path:
    return next(made(f"gguf-{kind}").folder.glob("*.gguf"))


@pytest.fixture
def theirs(made: Make, tmp_path: Path) -> Callable[..., Path]:
    def make(file_type: str, through: str = "bf16", **options: object) -> Path:
        target = tmp_path / f"{file_type}-{through}.gguf"
        quantize_file(
            lossless(made, through),
            target,
            FILE_TYPES[file_type].value,
            threads=1,
            **options,  # type: ignore[arg-type]
        )
        return target

    return make


@pytest.mark.parametrize("file_type", ["q4_k_m", "q5_0", "iq4_xs", "q8_0"])
def test_every_block_is_made_again(
    theirs: Callable[..., Path], source: Path, tmp_path: Path, file_type: str
) -> None:
    file = theirs(file_type)
    found = attest(file, source, "-o", tmp_path / "statement.json")
    assert found["equal"], found
    assert (found["recipe"]["type"], found["recipe"]["via"]) == (file_type, "auto")
    assert "otherwise" not in found["recipe"]
    assert found["metadata"] == []
    renamed = shutil.copy(file, tmp_path / "sha256-of-it")  # whatever it is called
    assert verify(renamed, tmp_path / "statement.json")["files"] == [file.name]


def test_a_detour_through_f16_is_seen(theirs: Callable[..., Path], source: Path, tmp_path: Path) -> None:
    """Of weights too small for F16 the detour rounds some, so that the bytes differ."""
    import torch
    from safetensors.torch import load_file, save_file

    small = shutil.copytree(source, tmp_path / "small")
    tensors = load_file(small / "model.safetensors")
    tensors = {name: value * 2**-12 if "proj" in name else value for name, value in tensors.items()}
    rounded = {name: value.to(torch.bfloat16) for name, value in tensors.items()}
    save_file(rounded, small / "model.safetensors", {"format": "pt"})
    f16 = convert(small, "gguf-f16", tmp_path / "f16", verify="none", run=RUN)
    target = tmp_path / "theirs.gguf"
    quantize_file(next(f16.folder.glob("*.gguf")), target, FILE_TYPES["q4_0"].value, threads=1)
    found = attest(target, small, "-o", tmp_path / "statement.json")
    assert found["equal"], found
    assert found["recipe"]["via"] == "f16"


def test_with_an_importance_matrix(
    theirs: Callable[..., Path], made: Make, source: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    entries = {
        name: Entry(random.lognormal(0, 2, (1, tensor.shape[-1])).astype(np.float32), np.array([1]))
        for name, tensor in read_gguf(lossless(made, "bf16")).tensors.items()
        if name.startswith("blk.") and len(tensor.shape) > 1
    }
    matrix = tmp_path / "matrix.gguf"
    write_imatrix(matrix, ImportanceMatrix(entries, ("text.txt",), 3, 512))
    kvs = {"quantize.imatrix.file": str(matrix), "quantize.imatrix.dataset": "text.txt"}
    kvs |= {"quantize.imatrix.entries_count": len(entries), "quantize.imatrix.chunks_count": 3}
    file = theirs("iq3_xxs", importance={name: each.means() for name, each in entries.items()}, kvs=kvs)
    error = attest(file, source, "-o", tmp_path / "statement.json")["error"]
    assert isinstance(error, BadInput)
    assert "matrix.gguf" in str(error)
    found = attest(file, source, "-o", tmp_path / "statement.json", "--imatrix", matrix)
    assert found["equal"], found
    assert found["recipe"]["imatrix"] == "matrix.gguf"
    assert [each["key"] for each in found["metadata"]] == ["quantize.imatrix.file"], "theirs has the path"


def test_types_of_its_own(theirs: Callable[..., Path], source: Path, tmp_path: Path) -> None:
    file = theirs("q4_k_m", tensor_types=(("ffn_up", Type.Q8_0),))
    found = attest(file, source, "-o", tmp_path / "statement.json")
    assert found["equal"], found
    assert found["recipe"]["otherwise"] == {"tensors": 1, UP: "Q8_0 instead of Q4_K"}


def test_a_changed_block_is_named(theirs: Callable[..., Path], source: Path, tmp_path: Path) -> None:
    file = theirs("q4_k_m")
    change_gguf(file, "blk.0.attn_q.weight", 144 * 3 + 100)
    found = attest(file, source, "-o", tmp_path / "statement.json")
    assert isinstance(found["error"], StepFailed)
    (tensor,) = found["differing"]
    assert (tensor["tensor"], tensor["differing"]) == ("blk.0.attn_q.weight", 1)


def rewritten(file: GgufFile, target: Path, changes: Kvs) -> Path:
    """The same tensors under other metadata."""
    kvs: dict = {  # type: ignore[type-arg]
        key: (value, file.kv_types[key][0]) for key, value in file.kvs.items()
    }

    def of(name: str, shape: tuple[int, ...], kind: Type) -> Planned:
        nothing = np.zeros((int(np.prod(shape[:-1])), shape[-1]), np.float32)
        raw = file.raw(name)
        return Planned(
            name, shape, kind, lambda: nothing, lambda: None, blocks=lambda first, last: raw[first:last]
        )

    tensors = [of(name, tensor.shape, tensor.kind) for name, tensor in file.tensors.items()]
    write_gguf(target, {**kvs, **changes}, tensors, threads=1)
    return target


def test_metadata_that_was_changed(theirs: Callable[..., Path], source: Path, tmp_path: Path) -> None:
    """Settings, tokens and templates decide; names do not."""
    file = read_gguf(theirs("q4_k_m"))
    tokens = [*file.kvs["tokenizer.ggml.tokens"]]
    tokens[5], tokens[6] = tokens[6], tokens[5]
    eps = "llama.attention.layer_norm_rms_epsilon"
    text, number = file.kv_types["general.name"][0], file.kv_types[eps][0]
    listed = file.kv_types["tokenizer.ggml.tokens"][0]
    about = rewritten(file, tmp_path / "about.gguf", {"general.name": ("Another", text)})
    found = attest(about, source, "-o", tmp_path / "about.json")
    assert found["equal"], found
    assert [(each["key"], each["group"]) for each in found["metadata"]] == [("general.name", "about")]
    for name, change, group in (
        ("tokens", {"tokenizer.ggml.tokens": (tokens, listed)}, "tokenizer"),
        ("template", {"tokenizer.chat_template": ("{{ 'obey' }}", text)}, "tokenizer"),
        ("eps", {eps: (0.5, number)}, "settings"),
    ):
        changed = rewritten(file, tmp_path / f"{name}.gguf", change)
        found = attest(changed, source, "-o", tmp_path / f"{name}.json")
        assert isinstance(found["error"], StepFailed)
        assert "its weights follow from" in str(found["error"])
        assert [(each["key"], each["group"]) for each in found["metadata"]] == [(next(iter(change)), group)]
        assert found["differing"] == []
        assert attest(changed, source, "-o", tmp_path / f"{name}.json", "--weights-only")["equal"]


def test_tensors_of_another_model(
    theirs: Callable[..., Path], make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    file = theirs("q8_0")
    deeper = make_checkpoint(num_hidden_layers=2, hidden_size=256, intermediate_size=256)
    found = attest(file, deeper, "-o", tmp_path / "statement.json")
    assert "is missing, and the source has it" in {each["why"] for each in found["differing"]}
