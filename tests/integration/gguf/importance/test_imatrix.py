"""`quantwright imatrix`: what transformers' model multiplies with, against what llama.cpp's own graph
does."""

from pathlib import Path

import numpy as np
import pytest
from family_cases import CASES, Case, make, write_gguf_f32
from llamacpp_activations import collect

from quantize import Artifact
from quantize.calibration.importance import compute_imatrix, with_first_token
from quantize.calibration.texts import held_out_text
from quantize.cli import cli
from quantize.errors import BadInput, Unsupported
from quantize.gguf.importance.file import read_imatrix
from quantize.sources.opening import open_checkpoint

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs


# Those that differ in how they multiply: experts of three kinds, fused weights, latent attention, weights
# stored input-first.
SHORT = {
    "Llama 3 (rope scaling, GQA)", "Mixtral", "Qwen2-MoE", "Gemma 3 (other pattern)", "Phi-3",
    "DeepSeek-V2 (low-rank queries)",
    "Falcon 40B", "GPT-2", "InternLM2",
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case.name in SHORT else [pytest.mark.long], id=case.name)
        for case in CASES
    ],
)
def test_sums_equal_llamacpp(case: Case, tmp_path: Path) -> None:
    """Sums to 1e-6 of the largest where the activation is SiLU (seen); where it is GELU, which llama.cpp
    looks up in a table of half-precision values, to 2e-3. Counts exactly, expert by expert."""
    _, folder = make(case, tmp_path / "hf")
    checkpoint = open_checkpoint(folder, tokenizer=False)
    ids = np.random.default_rng(3).integers(1, 160, (3, min(case.length, 64)))
    if case.rewrite:
        with pytest.raises(Unsupported, match="transformers"):
            compute_imatrix(checkpoint, ids, dataset="")
        return
    write_gguf_f32(folder, tmp_path / "model.gguf")
    theirs, ours = collect(tmp_path / "model.gguf", ids), compute_imatrix(checkpoint, ids, dataset="text")
    latent = {name for name in theirs if "attn_k_b" in name or "attn_v_b" in name}
    assert set(ours.missing) == latent
    assert theirs.keys() - latent == ours.matrix.entries.keys()
    for name, mine in ours.matrix.entries.items():
        assert np.array_equal(mine.counts, theirs[name].counts), name
        assert mine.sums.shape == theirs[name].sums.shape
        assert np.abs(mine.sums - theirs[name].sums).max() < case.tolerance * theirs[name].sums.max(), name


def test_command_writes_what_convert_takes(demo_checkpoint: Path, tmp_path: Path) -> None:
    """On the embedded checkpoint: the file's own account, the same bytes again, and use in a conversion that
    is verified."""
    (tmp_path / "held-out.txt").write_text(held_out_text()[:20_000])
    text = str(tmp_path / "held-out.txt")
    arguments = ["imatrix", str(demo_checkpoint), "--text", text, "--tokens", "1024", "--chunk", "128", "-o"]
    assert not cli.main([*arguments, str(tmp_path / "a.gguf")], standalone_mode=False)
    with pytest.raises(BadInput, match=r"a\.gguf: already exists"):
        cli.main([*arguments, str(tmp_path / "a.gguf")], standalone_mode=False)
    assert not cli.main([*arguments, str(tmp_path / "b.gguf")], standalone_mode=False)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    matrix = read_imatrix(tmp_path / "a.gguf")
    assert (matrix.datasets, matrix.chunk_count, matrix.chunk_size) == (("held-out.txt",), 8, 128)
    assert len(matrix.entries) == 4 * 7
    assert all(entry.counts.tolist() == [1024] for entry in matrix.entries.values())
    convert = [
        "convert",
        str(demo_checkpoint),
        "--to",
        "gguf-iq4_xs",
        "--imatrix",
        str(tmp_path / "a.gguf"),
        "--verify",
        "tensors",
    ]
    assert not cli.main([*convert, "-o", str(tmp_path / "made")], standalone_mode=False)
    notes = {note.tensor for note in Artifact.load(tmp_path / "made").manifest.notes}
    assert notes == {"token_embd.weight"}, "all else had its importances"
    with pytest.raises(BadInput, match="its folder does not exist"):
        cli.main([*arguments, str(tmp_path / "no" / "folder.gguf")], standalone_mode=False)


def test_windows_begin_with_the_first_token(demo_checkpoint: Path, tmp_path: Path) -> None:
    """Where a tokenizer puts a token before a text, llama-imatrix puts it at the head of each window."""
    import json
    import shutil

    ids = np.arange(10, 18).reshape(2, 4)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(demo_checkpoint / name, tmp_path / name)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    token = tokenizer["added_tokens"][0]
    single = [
        {"SpecialToken": {"id": token["content"], "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    special = {token["content"]: {"id": token["content"], "ids": [token["id"]], "tokens": [token["content"]]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": special,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert with_first_token(open_checkpoint(tmp_path), ids).tolist() == [
        [token["id"], 11, 12, 13],
        [token["id"], 15, 16, 17],
    ]
    assert np.array_equal(with_first_token(open_checkpoint(demo_checkpoint), ids), ids)
