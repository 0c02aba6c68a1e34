"""Every command that has an output: `--force` never takes what the command reads, nor what somebody else put
there."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from quantize.cli import cli
from quantize.errors import QuantwrightError


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and what was said, as ``quantize.cli.main`` makes them."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(done.exception, QuantwrightError):
        return done.exception.exit_code, str(done.exception)
    if done.exception is not None:
        raise done.exception
    return int(done.return_value or 0), done.output


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def built(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source`` in the folder ``models``, which an artifact of ours lies in too: ``dense``, itself a
    checkpoint, and ``q8``."""
    folder = tmp_path_factory.mktemp("built") / "models"
    shutil.copytree(
        make_checkpoint(num_hidden_layers=1, hidden_size=64, intermediate_size=64), folder / "source"
    )
    for recipe, name in (("float16", "dense"), ("gguf-q8_0", "q8")):
        assert (
            run("convert", folder / "source", "--to", recipe, "--verify", "none", "-o", folder / name)[0] == 0
        )
    return folder


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize(
    ("model", "out", "options", "says"),
    [
        ("source", "source", (), "an input that would be lost"),
        ("source", ".", (), "an input that would be lost"),
        ("dense", "dense", (), "an input that would be lost"),
        ("q8/GGUF", "q8", (), "an input that would be lost"),
        ("source", "dense", ("--adapter", "dense/adapter"), "an input that would be lost"),
        ("source", "dense", ("--calibration", "dense/training.txt"), "an input that would be lost"),
        ("source", "q8", ("--imatrix", "q8/GGUF"), "an input that would be lost"),
        ("source", "thesis.txt", (), "is a file"),
    ],
)
def test_convert(model: str, out: str, options: tuple[str, ...], says: str, models: Path) -> None:
    (models / "dense" / "training.txt").write_text("words")
    (models / "dense" / "adapter").mkdir()
    (models / "thesis.txt").write_text("words")

    def place(text: str) -> Path:
        return next((models / "q8").glob("*.gguf")) if text.endswith("GGUF") else models / text

    before = contents(models)
    more = [option if option.startswith("--") else place(option) for option in options]
    code, said = run(
        "convert", place(model), "--to", "gguf-q4_0", "--verify", "none", "--force", "-o", models / out, *more
    )
    assert (code, contents(models) == before) == (2, True), said
    assert says in said
    assert "\n" not in said


def test_convert_of_several(models: Path) -> None:
    """OUT/<recipe> is what would be replaced; all are looked at before any is made."""
    several = models / "several"
    shutil.copytree(models / "dense", several / "gguf-q4_0")
    before = contents(models)
    code, said = run("convert", several / "gguf-q4_0", "--to", "bfloat16,gguf-q4_0", "--force", "-o", several)
    assert (code, contents(models) == before) == (2, True), said
    assert "an input that would be lost" in said


def test_what_people_do_with_force_works(models: Path) -> None:
    """Again into the same folder, inside the source's, and through a link."""
    out = models / "source" / "q4"
    (models / "link").symlink_to(out)
    for place in (out, out, models / "link"):
        code, said = run(
            "convert", models / "source", "--to", "gguf-q4_0", "--verify", "none", "--force", "-o", place
        )
        assert code == 0, said
    assert (models / "link").is_symlink()
    assert (models / "link" / "manifest.json").is_file()


def test_publish(models: Path, tmp_path: Path) -> None:
    def publish(out: Path) -> tuple[int, str]:
        return run(
            "publish",
            models / "q8",
            "--repo",
            "me/x",
            "--name",
            "small",
            "--allow-unverified",
            "--dry-run",
            "--force",
            "-o",
            out,
        )

    before = contents(models)
    for out in (models / "q8", models, models / "source"):
        code, said = publish(out)
        assert (code, contents(models) == before) == (2, True), said
    assert [publish(tmp_path / "repository")[0] for _ in range(2)] == [0, 0]
    (tmp_path / "repository" / ".git").mkdir()
    assert publish(tmp_path / "repository")[0] == 2


def test_imatrix(models: Path, tmp_path: Path) -> None:
    gguf = next((models / "q8").glob("*.gguf"))
    (tmp_path / "thesis.txt").write_text("words")
    before = contents(models)
    for model, out in (
        (gguf, gguf),
        (models / "source", gguf),
        (models / "source", tmp_path / "thesis.txt"),
        (models / "source", models),
    ):
        code, said = run("imatrix", model, "--force", "-o", out)
        assert (code, contents(models) == before) == (2, True), said
    assert (tmp_path / "thesis.txt").read_text() == "words"


@pytest.mark.parametrize("command", ["eval", "bench", "imatrix", "convert", "publish", "report", "run"])
def test_a_link_to_nothing_is_refused(command: str, models: Path, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    more = {
        "convert": ["--to", "float16", "--verify", "none"],
        "publish": ["--repo", "me/x", "--name", "small", "--allow-unverified", "--dry-run"],
    }
    given = {"imatrix": models / "source", "convert": models / "source", "run": tmp_path / "job.yaml"}
    (tmp_path / "job.yaml").write_text("models: [models/source]\nrecipes: [float16]\n")
    if command == "report":
        from sample_run import write_run

        given["report"] = write_run(tmp_path / "measured", {})
    code, said = run(
        command, given.get(command, models / "q8"), *more.get(command, []), "-o", tmp_path / "dangling"
    )
    assert code == 2, said
    assert "dangling: " in said
    assert "\n" not in said
    assert not (tmp_path / "nothing").exists()
