"""What verification cannot reach is said before and after, on the last line and in the exit code; what fails
it can be kept."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from jobs.load import load_job
from jobs.plan import build_plan
from quantize.artifact.artifact import MANIFEST, Artifact, Note
from quantize.cli import cli
from quantize.conversion import failed_message
from quantize.engines.base import Conversion
from quantize.errors import QuantwrightError
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import RunOptions
from quantize.sources.opening import open_checkpoint
from quantize.verification.verify import verify

pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def unheard_of(make_checkpoint: Callable[..., Path]) -> Path:
    """MiniCPM, whose code lies with its weights: llama.cpp computes it, transformers has no class for it."""
    folder = make_checkpoint(num_hidden_layers=1, hidden_size=64, intermediate_size=64)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"}
    config |= {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(*arguments: object) -> SimpleNamespace:
    """The command, in this process; what it ends with is the last line of stderr, as the program prints
    it."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if done.exception is not None and not isinstance(done.exception, QuantwrightError):
        raise done.exception
    ended = f"quantwright: {done.exception}\n" if done.exception else ""
    code = getattr(done.exception, "exit_code", done.return_value or 0)
    return SimpleNamespace(exit_code=code, stdout=done.stdout, stderr=done.stderr + ended)


def test_a_lower_level_is_an_exit_code_and_the_last_line(unheard_of: Path, tmp_path: Path) -> None:
    done = run("convert", unheard_of, "--to", "gguf-f16", "-o", tmp_path / "out", "--json")
    assert done.exit_code == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "verified: tensors, not full as asked: " in last
    assert "minicpm" in last
    assert "--allow-lower-verification" in last
    artifact = Artifact.load(tmp_path / "out")  # kept, at its true level
    assert artifact.verified == "tensors"
    assert any(note.what == "verification reaches only 'tensors'" for note in artifact.manifest.notes)
    assert json.loads(done.stdout.strip().splitlines()[-1])["verified"] == "tensors"


@pytest.mark.parametrize("options", [["--allow-lower-verification"], ["--verify", "tensors"]])
def test_it_is_accepted_where_it_is_allowed_or_all_that_was_asked(
    unheard_of: Path, options: list[str], tmp_path: Path
) -> None:
    done = run("convert", unheard_of, "--to", "gguf-f16", "-o", tmp_path / "out", *options)
    assert done.exit_code == 0, done.stderr
    assert Artifact.load(tmp_path / "out").verified == "tensors"


def test_check_and_plan_say_so_before_the_work(unheard_of: Path, demo_checkpoint: Path) -> None:
    done = run("check", unheard_of, "--to", "gguf-f16", "--json")
    assert "verification can reach `tensors` only" in done.stderr
    row = json.loads(done.stdout.strip().splitlines()[-1])[0]
    assert row["possible"]
    assert row["verification"] == "tensors"
    assert "minicpm" in row["why_lower"]
    assert "verification can reach `tensors` only" in run("plan", unheard_of, "--to", "gguf-f16").stderr
    done = run("check", demo_checkpoint, "--to", "gguf-f16", "--json")
    assert "tensors" not in done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1])[0]["verification"] == "full"


@pytest.mark.parametrize("allowed", [False, True])
def test_jobs_have_the_same_option(unheard_of: Path, allowed: bool, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"models: [{unheard_of}]\nrecipes: [gguf-f16]\nallow_lower_verification: {str(allowed).lower()}\n"
    )
    step = build_plan(load_job(job), tmp_path).steps[0]
    assert ("--allow-lower-verification" in step.arguments) == allowed


def test_what_fails_is_kept_where_it_is_asked_for(demo_checkpoint: Path, tmp_path: Path) -> None:
    """A pre-tokenizer that cuts texts otherwise than the source's does."""
    command = [
        "convert",
        demo_checkpoint,
        "--to",
        "gguf-q8_0:pre_tokenizer=deepseek-llm",
        "-o",
        tmp_path / "out",
    ]
    done = run(*command)
    assert done.exit_code == 1
    assert "nothing was written (--keep-failed keeps it)" in done.stderr
    assert list(tmp_path.iterdir()) == []
    for name in ("out.failed", "out-2.failed"):
        done = run(*command, "--keep-failed")
        assert done.exit_code == 1
        assert f"kept in {tmp_path / name}" in done.stderr
        kept = {path.name for path in (tmp_path / name).iterdir()}
        assert MANIFEST not in kept
        assert any(path.endswith(".gguf") for path in kept)
        record = json.loads((tmp_path / name / "verification.json").read_text())
        assert any(not check["passed"] for check in record["checks"])
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_which_nothing_is_quantized_does_not_verify(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """However well each tensor that stayed is explained."""
    source = make_checkpoint()
    work = plan(open_checkpoint(source), parse_recipe("gptq-int4"))
    notes = [Note(tensor=name, what="kept", why="the engine left it") for name in work.expected]
    found = verify(work, source, Conversion(0, "an engine", notes=notes), RunOptions(device="cpu"), "tensors")
    assert failed_message(found) == "types: nothing is quantized"
