"""`quantwright imatrix`: what transformers' model multiplies with, against what llama.cpp's own graph
does."""

import json
from pathlib import Path

import numpy as np
import pytest
from family_cases import CASES, Case, make, write_gguf_f32
from llamacpp_activations import collect

from jobs.load import load_job
from jobs.plan import build_plan
from jobs.steps.convert import ConvertStep
from quantize import Artifact
from quantize.calibration.importance import compute_imatrix, with_first_token
from quantize.calibration.texts import held_out_text
from quantize.calibration.windows import load_calibration
from quantize.cli import cli
from quantize.errors import BadInput, Unsupported
from quantize.gguf.importance.file import read_imatrix
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import CalibrationOptions
from quantize.sources.opening import open_checkpoint

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs


# Those that differ in how they multiply: experts of three kinds, fused weights, latent attention, weights
# stored input-first.
SHORT = {
    "Llama 3 (rope scaling, GQA)", "Mixtral", "Qwen2-MoE", "Gemma 3 (other pattern)", "Phi-3",
    "DeepSeek-V2 (low-rank queries)",
    "Falcon 40B", "GPT-2", "InternLM2", "Qwen3.5",
}  # fmt: skip


# transformers makes no causal language model of their files
REFUSED = {"InternLM2", "Baichuan 2", "MiniCPM"}
# Where llama.cpp multiplies a whole input by a number that transformers has in the weight or behind it: its
# sums are ours times this, which no block quantizer sees.
FACTORS = {
    "MiMo V2 Flash": {"attn_output": 1 / 0.707**2},
    "Falcon-H1 (multipliers)": {"ssm_in": 1.3**-2, "attn_q": 1.2**-2, "attn_k": 1.2**-2, "attn_v": 1.2**-2},
}
# transformers multiplies zeros with the experts that a token does not reach
COUNTED_ALL = {"Llama 4"}
# the last layers take keys and values of earlier ones
IDLE = {"Gemma 3n": {f"blk.{layer}.attn_{part}.weight" for layer in (20, 21) for part in "kv"}}


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
    if case.name in REFUSED:
        with pytest.raises(Unsupported, match="transformers"):
            compute_imatrix(checkpoint, ids, dataset="")
        return
    write_gguf_f32(folder, tmp_path / "model.gguf")
    theirs, ours = collect(tmp_path / "model.gguf", ids), compute_imatrix(checkpoint, ids, dataset="text")
    latent = {name for name in theirs if "attn_k_b" in name or "attn_v_b" in name}
    assert set(ours.missing) == latent | IDLE.get(case.name, set())
    assert theirs.keys() - latent == ours.matrix.entries.keys()
    for name, mine in ours.matrix.entries.items():
        assert case.name in COUNTED_ALL or np.array_equal(mine.counts, theirs[name].counts), name
        assert mine.sums.shape == theirs[name].sums.shape
        sums = mine.sums * FACTORS.get(case.name, {}).get(name.split(".")[2], 1)
        assert np.abs(sums - theirs[name].sums).max() < case.tolerance * theirs[name].sums.max(), name


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


def test_convert_computes_what_the_command_does(demo_checkpoint: Path, tmp_path: Path) -> None:
    """`imatrix=auto` writes the bytes of a conversion with the file that `quantwright imatrix` makes of the
    same text, where it is called so. Against llama.cpp's own sums over the same ids: in float32, 1e-5 of the
    largest, as both add in another order; as it is computed without being asked, 1e-2 where that is in
    bfloat16, whose factors are good to 4e-3."""
    (tmp_path / "held-out.txt").write_text(held_out_text()[:20_000])
    text = str(tmp_path / "held-out.txt")
    command = ["imatrix", str(demo_checkpoint), "--text", text, "--tokens", "1024", "--chunk", "128"]
    assert not cli.main([*command, "-o", str(tmp_path / "auto")], standalone_mode=False)
    to_iq4 = ["convert", str(demo_checkpoint), "--to", "gguf-iq4_xs", "--verify", "none", "--imatrix"]
    given = str(tmp_path / "auto")  # a file of the name that is written where none is given
    assert not cli.main([*to_iq4, given, "-o", str(tmp_path / "given")], standalone_mode=False)
    short = "gguf-iq4_xs:imatrix=auto"
    options = ["--calibration", text, "--calibration-tokens", "1024", "--calibration-length", "128"]
    convert = ["convert", str(demo_checkpoint), "--to", short, "--verify", "tensors", *options]
    assert not cli.main([*convert, "-o", str(tmp_path / "made")], standalone_mode=False)

    by_file, made = (Artifact.load(tmp_path / name).manifest for name in ("given", "made"))
    assert [entry.sha256 for entry in made.files.values()] == [f.sha256 for f in by_file.files.values()]
    assert made.recipe_short == short
    assert made.recipe["imatrix"] == "auto"
    assert made.recipe_digest != by_file.recipe_digest
    assert parse_recipe(made.recipe) == parse_recipe(short)
    assert made.calibration is not None
    assert (made.calibration.source, made.calibration.tokens) == (text, 1024)
    own = made.details["imatrix"]
    assert own["sha256"] == by_file.recipe["imatrix_sha256"]
    assert (own["windows"], own["window_tokens"], own["entries"]) == (8, 128, 4 * 7)

    checkpoint = open_checkpoint(demo_checkpoint)
    ids = load_calibration(checkpoint, CalibrationOptions(source=text, tokens=1024, sequence_length=128)).ids
    write_gguf_f32(demo_checkpoint, tmp_path / "model.gguf")
    theirs = collect(tmp_path / "model.gguf", with_first_token(checkpoint, ids))
    exact = ["--dtype", "float32", "-o", str(tmp_path / "exact")]
    assert not cli.main([*command, *exact], standalone_mode=False)
    for file, tolerance in (("exact", 1e-5), ("auto", 1e-2)):
        mine = read_imatrix(tmp_path / file).entries
        assert theirs.keys() == mine.keys()
        for name, entry in mine.items():
            assert np.array_equal(entry.counts, theirs[name].counts), name
            assert np.abs(entry.sums - theirs[name].sums).max() < tolerance * theirs[name].sums.max(), name


def test_types_that_need_importances_get_computed_ones(demo_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "held-out.txt").write_text(held_out_text()[:20_000])
    text = str(tmp_path / "held-out.txt")
    options = ["--calibration", text, "--calibration-tokens", "512", "--verify", "none"]
    convert = ["convert", str(demo_checkpoint), "--to", "gguf:type=iq2_xs,imatrix=AUTO", *options]
    assert not cli.main([*convert, "-o", str(tmp_path / "made")], standalone_mode=False)
    assert Artifact.load(tmp_path / "made").manifest.details["quantize.imatrix.dataset"] == "held-out.txt"
    with pytest.raises(Unsupported, match="apply only to quantized files"):
        plan(open_checkpoint(demo_checkpoint), parse_recipe("gguf-f16:imatrix=auto"))


def test_what_transformers_lacks_is_refused_before_any_work(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "InternLM2")
    _, folder = make(case, tmp_path / "hf")
    checkpoint = open_checkpoint(folder, tokenizer=False)
    with pytest.raises(Unsupported, match=r"imatrix=auto: importances cannot be computed: .*transformers"):
        plan(checkpoint, parse_recipe("gguf-q4_k_m:imatrix=auto"))


def test_a_job_computes_importances(demo_checkpoint: Path, tmp_path: Path) -> None:
    """A key of its own, of the text and of what computes; `auto` is no path."""
    recipes = ["gguf-q4_0:imatrix=auto", {"method": "gguf", "type": "q4_1", "imatrix": "auto"}, "gguf-q4_0"]
    job = {"models": [str(demo_checkpoint)], "recipes": recipes, "calibration": "stdlib"}
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    planned = build_plan(load_job(tmp_path / "job.yaml"), tmp_path).steps
    steps = {step.recipe.short: step for step in planned if isinstance(step, ConvertStep)}
    one, other, plain = (steps[s] for s in ("gguf-q4_0:imatrix=auto", "gguf-q4_1:imatrix=auto", "gguf-q4_0"))
    for step in (one, other):
        assert step.calibration == "stdlib"
        assert step.arguments[step.arguments.index("--to") + 1] == step.recipe.short
        assert "--calibration" in step.arguments
        assert {"torch", "transformers"} <= set(step.packages)
    assert not plain.calibration
    assert "--calibration" not in plain.arguments
    assert one.id != plain.id


def test_windows_begin_with_the_first_token(demo_checkpoint: Path, tmp_path: Path) -> None:
    """Where a tokenizer puts a token before a text, llama-imatrix puts it at the head of each window."""
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
