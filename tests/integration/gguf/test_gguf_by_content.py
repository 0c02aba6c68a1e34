"""A GGUF file is known by its first bytes: an Ollama blob has no suffix. What was quantized before says
so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gguf_bytes import tiny_gguf

from quantize.cli import cli
from quantize.errors import BadInput
from quantize.gguf.container.files import find_gguf

BLOB = "sha256-0123456789abcdef"


@pytest.fixture(scope="module")
def blob(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_gguf(tmp_path_factory.mktemp("tiny") / "out", make_checkpoint, recipe="gguf-q8_0")
    return Path(shutil.copy(made, tmp_path_factory.mktemp("blobs") / BLOB))


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def test_every_command_knows_it(blob: Path, tmp_path: Path) -> None:
    upper = str(shutil.copy(blob, tmp_path / "MODEL.GGUF"))
    text = tmp_path / "text.txt"
    text.write_text("the rain in the hills and the road to the river " * 40)
    assert "16 of Q8_0" in run("check", blob, "--to", "gguf-q4_0").stderr
    evaluate = (
        "eval",
        blob,
        upper,
        "--reference",
        blob,
        "--text",
        text,
        "--protocol",
        "gptq-32",
        "--no-floors",
        "--json",
    )
    rows = json.loads(run(*evaluate).stdout.splitlines()[-1])
    assert {row["artifact"] for row in rows} == {str(blob), upper}
    assert all(row["value"] < 1e-6 for row in rows if row["metric"] == "kl_mean")
    bench = ("bench", blob, "--prefill", "8", "--decode", "2", "--repetitions", "1", "--json")
    assert {row["artifact"] for row in json.loads(run(*bench).stdout.splitlines()[-1])} == {str(blob)}
    run("imatrix", blob, "--text", text, "--tokens", "128", "--chunk", "32", "-o", tmp_path / "imatrix.gguf")
    (tmp_path / "job.yaml").write_text(f"models: [{blob}]\nrecipes: [gguf-q4_0]\nbenchmark: {{}}\n")
    assert "gguf-q4_0" in run("plan", tmp_path / "job.yaml").stdout


def test_what_is_made_of_it_says_that_it_was_rounded_before(blob: Path, tmp_path: Path) -> None:
    from quantize.artifact.artifact import Artifact
    from reports.card import CardOptions, model_card

    done = run("convert", blob, "--to", "float16", "-o", tmp_path / "out", "--verify", "none")
    assert "rounded before this conversion: 16 of Q8_0" in done.stderr
    artifact = Artifact.load(tmp_path / "out")
    assert artifact.manifest.source.quantized == "16 of Q8_0"
    card = str(model_card([artifact], {}, CardOptions(repo="me/it"), None))
    assert "itself quantized: 16 of Q8" in card
    assert "rounded before this conversion" in card


def test_what_was_not_quantized_says_nothing(
    blob: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    plain = tiny_gguf(tmp_path / "plain", make_checkpoint)
    assert (
        "rounded before"
        not in run("convert", plain, "--to", "float16", "-o", tmp_path / "out", "--verify", "none").stderr
    )


def test_which_file_a_folder_holds(tmp_path: Path) -> None:
    def touch(*names: str) -> Path:
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"GGUF")
        return folder

    assert find_gguf(tmp_path / "absent.gguf") == tmp_path / "absent.gguf"
    assert find_gguf(tmp_path / "absent") is None
    assert find_gguf(touch("config.json")) is None
    one = touch("mmproj-model.gguf", "model.GGUF", "imatrix.gguf")
    assert find_gguf(one) == one / "model.GGUF"
    split = touch("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    assert find_gguf(split) == split / "m-00001-of-00002.gguf"
    checkpoint = touch("config.json", "model.safetensors", "model.gguf")
    assert find_gguf(checkpoint) is None
    with pytest.raises(BadInput, match=r"holds a\.gguf, b\.gguf; give one of the files"):
        find_gguf(touch("a.gguf", "b.gguf"))
