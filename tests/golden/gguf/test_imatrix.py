"""With an importance matrix: our files against llama.cpp's own quantizer given the same one, byte for byte,
header included."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.llama_quantize import quantize_file
from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.importance.file import Entry, ImportanceMatrix, read_imatrix, write_imatrix
from quantize.gguf.importance.use import WEIGHTED
from quantize.gguf.mixture import requires_imatrix
from quantize.kernels.block_types import FILE_TYPES, row_bytes
from quantize.kernels.ggml import GGML
from quantize.methods.gguf import Gguf
from quantize.methods.gguf_recipe import PRESET_TYPES, GgufRecipe

from .test_identity import QUANTIZED, assert_same_tensors, convert

BELOW_THREE_BITS = [name for name, kind in FILE_TYPES.items() if kind.quantized and name not in PRESET_TYPES]


def make_mixtral(folder: Path, demo: Path) -> Path:
    import shutil

    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=512, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4, max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder / name)
    return folder


@pytest.fixture(scope="module", params=["eight layers", "experts"])
def source(
    request: pytest.FixtureRequest,
    make_checkpoint: Callable[..., Path],
    demo_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if request.param == "experts":
        return make_mixtral(tmp_path_factory.mktemp("mixtral"), demo_checkpoint)
    # Eight layers: the first eighth, for which the rules differ with a matrix, is one.
    return make_checkpoint(num_hidden_layers=8, vocab_size=512, intermediate_size=256)


@pytest.fixture(scope="module")
def lossless(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(source, tmp_path_factory.mktemp("lossless"), type="bf16")


@pytest.fixture(scope="module")
def matrix(lossless: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As llama-imatrix would leave it: every matrix of every block, experts apart, one of them never
    reached."""
    random = np.random.default_rng(0)
    entries = {}
    for name, tensor in read_gguf(lossless).tensors.items():
        if name.startswith("blk.") and len(tensor.shape) > 1:
            count = tensor.shape[0] if len(tensor.shape) > 2 else 1
            counts = random.integers(100, 2000, count)
            sums = random.lognormal(0, 2, (count, tensor.shape[-1])).astype(np.float32) * counts[
                :, None
            ].astype(np.float32)
            if count > 1:
                sums[2], counts[2] = 0, 0
            entries[name] = Entry(sums, counts)
    path = tmp_path_factory.mktemp("matrix") / "importance.gguf"
    write_imatrix(path, ImportanceMatrix(entries, ("wiki.train.raw", "code.txt"), 37, 512))
    return path


def theirs(lossless: Path, out: Path, name: str, matrix: Path) -> Path:
    """What llama-quantize --imatrix does: mean squares and four entries of metadata go to the library."""
    loaded = read_imatrix(matrix)
    quantize_file(
        lossless,
        out,
        FILE_TYPES[name].value,
        threads=2,
        importance={name: entry.means().reshape(-1) for name, entry in loaded.entries.items()},
        kvs={
            "quantize.imatrix.file": matrix.name,
            "quantize.imatrix.dataset": loaded.datasets[0],
            "quantize.imatrix.entries_count": len(loaded.entries),
            "quantize.imatrix.chunks_count": loaded.chunk_count,
        },
    )
    return out


def same_as_llamacpp(source: Path, lossless: Path, matrix: Path, folder: Path, name: str) -> Path:
    ours = convert(source, folder / "ours", type=name, imatrix=str(matrix), quantized_by=None)
    assert ours.read_bytes() == theirs(lossless, folder / "theirs.gguf", name, matrix).read_bytes()
    return ours


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_type_equals_llamacpp(
    source: Path, lossless: Path, matrix: Path, tmp_path: Path, name: str
) -> None:
    same_as_llamacpp(source, lossless, matrix, tmp_path, name)


@pytest.mark.long
@pytest.mark.parametrize("name", BELOW_THREE_BITS)
def test_types_below_three_bits_equal_llamacpp(
    source: Path, lossless: Path, matrix: Path, tmp_path: Path, name: str
) -> None:
    same_as_llamacpp(source, lossless, matrix, tmp_path, name)


def test_types_that_need_one_are_refused_without(source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Unsupported, match=r"blk\.0\..* as IQ2_XXS needs an importance matrix, give one with --imatrix"
    ):
        convert(source, tmp_path, type="iq2_xxs")


def test_which_types_look_at_importances() -> None:
    """The types named as weighted give other bytes with importances, the others the same."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((4, 512), np.float32)
    weights = random.lognormal(0, 2, 512).astype(np.float32)
    for kind in {t.default for t in FILE_TYPES.values() if t.quantized}:
        if requires_imatrix("blk.0.attn_q.weight", kind, FILE_TYPES["q8_0"]):
            continue
        GGML.prepare(kind)
        made = []
        for importance in (None, weights):
            out = np.empty((4, row_bytes(kind, 512)), np.uint8)
            GGML.quantize(kind, rows, out, importance)
            made.append(out)
        assert np.array_equal(*made) == (kind not in WEIGHTED), kind.name


def changed(matrix: Path, out: Path, change: Callable[[dict[str, Entry]], None]) -> Path:
    loaded = read_imatrix(matrix)
    entries = dict(loaded.entries)
    change(entries)
    write_imatrix(out, dataclasses.replace(loaded, entries=entries))
    return out


def notes(source: Path, folder: Path, matrix: Path, name: str) -> dict[str, str]:
    from quantize.recipe import RunOptions
    from quantize.sources.opening import open_checkpoint

    folder.mkdir()
    recipe = GgufRecipe(type=name, imatrix=str(matrix))
    work = Gguf().plan(open_checkpoint(source), recipe)
    made = work.write(folder, RunOptions(threads=2, progress=False), None)
    return {note.tensor: f"{note.what}: {note.why}" for note in made.notes}


def test_what_goes_without_is_noted(source: Path, lossless: Path, matrix: Path, tmp_path: Path) -> None:
    fewer = changed(
        matrix, tmp_path / "fewer.gguf", lambda entries: entries.pop("blk.1.attn_v.weight") and None
    )
    ours = same_as_llamacpp(source, lossless, fewer, tmp_path, "q4_k_m")
    noted = notes(source, tmp_path / "noted", fewer, "q4_k_m")
    assert noted["blk.1.attn_v.weight"].endswith(
        "without importances: fewer.gguf has no entry for this tensor"
    )
    assert {"token_embd.weight", "output.weight"} <= noted.keys()
    if "blk.0.ffn_up_exps.weight" in read_gguf(ours).tensors:
        assert "experts 2, 1 of 4" in noted["blk.0.ffn_up_exps.weight"]
    with pytest.raises(
        Unsupported, match=r"blk\.1\.attn_v\.weight as .* but fewer.gguf has no entry for this tensor"
    ):
        convert(source, tmp_path / "low", type="iq1_s", tensor_types=["attn_v=iq2_xxs"], imatrix=str(fewer))


def test_a_matrix_of_another_model_is_refused(source: Path, matrix: Path, tmp_path: Path) -> None:
    def wider(entries: dict[str, Entry]) -> None:
        entries["blk.0.ffn_down.weight"] = entries["blk.0.ffn_down_exps.weight"] = Entry(
            np.ones((1, 288), np.float32), np.array([9])
        )

    def deeper(entries: dict[str, Entry]) -> None:
        entries["blk.9.attn_q.weight"] = entries["blk.1.attn_q.weight"]

    def foreign(entries: dict[str, Entry]) -> None:
        entries.clear()
        entries["enc.blk.0.attn_q.weight"] = Entry(np.ones((1, 256), np.float32), np.array([9]))

    for change, message in (
        (
            wider,
            r"blk\.0\.ffn_down.* has 288 importances, this model's has \d+: an importance matrix of another "
            r"model",
        ),
        (deeper, r"entry for blk\.9\.attn_q\.weight, which this model of \d layers does not have"),
        (foreign, r"entry for enc\.blk\.0\.attn_q\.weight"),
    ):
        with pytest.raises(BadInput, match=message):
            convert(
                source,
                tmp_path / "stage",
                type="q4_k_m",
                imatrix=str(changed(matrix, tmp_path / "other.gguf", change)),
            )


def test_the_old_format_gives_the_same_tensors(source: Path, matrix: Path, tmp_path: Path) -> None:
    """Which does not say where one expert ends: the model's shapes do."""
    import struct

    entries = read_imatrix(matrix).entries
    data = struct.pack("<i", len(entries))
    for name, entry in entries.items():
        means = entry.means().reshape(-1)
        data += (
            struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, means.size) + means.tobytes()
        )
    old = tmp_path / "imatrix.dat"
    old.write_bytes(data + struct.pack("<ii", 37, 3) + b"abc")
    assert_same_tensors(
        read_gguf(convert(source, tmp_path / "old", type="q4_k_m", imatrix=str(old))),
        read_gguf(convert(source, tmp_path / "new", type="q4_k_m", imatrix=str(matrix))),
    )
