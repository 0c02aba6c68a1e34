"""Options of `quantwright convert` that set parameters of GGUF recipes, and jobs that name an importance
matrix."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs.load import load_job
from jobs.plan import build_plan
from quantize import Artifact
from quantize.cli import cli
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.importance.file import Entry, ImportanceMatrix, write_imatrix


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # a comma separates parameters of short spellings
    path = tmp_path_factory.mktemp("matrix") / "my, own.gguf"
    values = np.random.default_rng(0).lognormal(0, 2, (1, 256)).astype(np.float32)
    write_imatrix(
        path,
        ImportanceMatrix(
            {f"blk.{i}.attn_q.weight": Entry(values, np.array([1])) for i in (0, 1)}, ("a",), 2, 9
        ),
    )
    return path


def convert(checkpoint: Path, out: Path, *options: str) -> object:
    return cli.main(
        ["convert", str(checkpoint), "-o", str(out), "--verify", "none", *options], standalone_mode=False
    )


def kinds(folder: Path) -> dict[str, str]:
    return {name: tensor.kind.name for name, tensor in read_gguf(min(folder.glob("*.gguf"))).tensors.items()}


def test_options_reach_the_recipe(checkpoint: Path, matrix: Path, tmp_path: Path) -> None:
    types = ["--tensor-type", "ffn_down=q6_k", "--tensor-type", r"blk\.\d{1,2}\.attn_v=q5_1"]
    more = ["--via", "f16", "--imatrix", str(matrix), "--split-max-size", "1MB"]
    assert not convert(checkpoint, tmp_path / "one", "--to", "gguf-q4_0", *types, *more)
    manifest = Artifact.load(tmp_path / "one").manifest
    assert {"via": "f16", "split_max_bytes": 10**6, "imatrix": matrix.name}.items() <= manifest.recipe.items()
    assert str(matrix.parent) not in manifest.model_dump_json()
    assert len(manifest.files) > 1
    seen = kinds(tmp_path / "one")
    assert {seen["blk.0.ffn_down.weight"], seen["blk.1.attn_v.weight"], seen["blk.1.attn_q.weight"]} == {
        "Q6_K",
        "Q5_1",
        "Q4_0",
    }
    assert manifest.details["quantize.imatrix.entries_count"] == 2
    assert any(note.tensor == "blk.0.attn_k.weight" and "has no entry" in note.why for note in manifest.notes)


def test_options_reach_each_of_several_recipes(checkpoint: Path, matrix: Path, tmp_path: Path) -> None:
    """Each recipe is converted by a process of its own; a comma in a pattern or a path must survive that."""
    options = [
        "--imatrix",
        str(matrix),
        "--tensor-type",
        r"blk\.\d{1,2}\.ffn_up=q8_0",
        "--to",
        "gguf-q4_0,gguf-q4_1,bfloat16",
    ]
    assert not convert(checkpoint, tmp_path / "all", *options)
    folders = sorted(path for path in (tmp_path / "all").iterdir() if path.name.startswith("gguf"))
    assert len(folders) == 2
    for folder in folders:
        assert kinds(folder)["blk.1.ffn_up.weight"] == "Q8_0"
        assert Artifact.load(folder).manifest.recipe["imatrix"] == matrix.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "bfloat16", "--via", "f16"], "--via: is only for GGUF recipes"),
        (
            ["--to", "bnb-nf4", "--allow-tokenizer-mismatch"],
            "--allow-tokenizer-mismatch: is only for GGUF recipes",
        ),
        (["--to", "bfloat16", "--tensor-type", "a=q8_0"], "--tensor-type: is only for GGUF recipes"),
        (
            ["--to", "gguf-q4_0", "--tensor-type", "ffn_down"],
            "'ffn_down': expected REGEX=TYPE, e.g. ffn_down=q6_k",
        ),
        (["--to", "gguf-q4_0", "--tensor-type", "ffn_down=q9"], "'q9' is not a tensor type; known: f32"),
        (["--to", "gguf-q4_0", "--tensor-type", "(=q8_0"], "not a regular expression"),
        (
            ["--to", "gguf-q4_0", "--tensor-type", "fnn_down=q8_0"],
            "fnn_down: matches no tensor of this model",
        ),
        (["--to", "gguf-f16", "--tensor-type", "ffn_down=q8_0"], "only to quantized files"),
        (["--to", "gguf-q4_0", "--split-max-size", "many"], "expected something like 8GiB"),
        (["--to", "gguf-q4_0", "--split-max-size", "1kB"], "greater than or equal to 65536"),
        (["--to", "gguf-q4_0", "--imatrix", "absent.gguf"], "imatrix absent.gguf: no such file"),
        (["--to", "gguf-q4_0", "--imatrix", __file__], "no importance matrix, or damaged"),
    ],
)
def test_bad_options(checkpoint: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises((BadInput, Unsupported)) as caught:
        convert(checkpoint, tmp_path / "one", *options)
    assert message in str(caught.value)
    assert not (tmp_path / "one").exists()


def test_a_tokenizer_mismatch_fails_or_is_recorded(checkpoint: Path, tmp_path: Path) -> None:
    """A pre-tokenizer that splits otherwise than the source does: another file would mend that."""
    options = ["--to", "gguf-q8_0", "--verify", "tensors", "--pre-tokenizer", "deepseek-llm"]
    with pytest.raises(StepFailed, match="verification failed at tokenizer"):
        convert(checkpoint, tmp_path / "one", *options)
    assert not convert(checkpoint, tmp_path / "one", *options, "--allow-tokenizer-mismatch")
    manifest = Artifact.load(tmp_path / "one").manifest
    assert manifest.verification.passed
    assert any(
        "differ" in note.what and note.why == "--allow-tokenizer-mismatch was given"
        for note in manifest.notes
    )
    check = next(check for check in manifest.verification.checks if check.name == "tokenizer")
    assert check.value


def test_a_job_names_a_matrix_relative_to_its_file(checkpoint: Path, matrix: Path, tmp_path: Path) -> None:
    (tmp_path / "matrices").mkdir()
    (tmp_path / "matrices" / "a.gguf").write_bytes(matrix.read_bytes())
    spelled = [
        "gguf-q4_0:imatrix=matrices/a.gguf",
        {"method": "gguf", "matrix": {"imatrix": ["matrices/a.gguf"], "type": ["q4_1"]}},
    ]
    (tmp_path / "job.yaml").write_text(json.dumps({"models": [str(checkpoint)], "recipes": spelled}))
    job = load_job(tmp_path / "job.yaml")
    steps = [step for step in build_plan(job, tmp_path).steps if step.kind == "convert"]
    for step in steps:
        assert step.files == (tmp_path / "matrices" / "a.gguf",), "its content is part of the step's key"
        assert step.arguments[step.arguments.index("--imatrix") + 1] == str(tmp_path / "matrices" / "a.gguf")
    assert len({step.id for step in steps}) == 2
    (tmp_path / "job.yaml").write_text('{"models": ["m"], "recipes": ["gguf-q4_0:imatrix=b.gguf"]}')
    with pytest.raises(BadInput, match=r"job.yaml:1: recipes.0: imatrix .*b.gguf: no such file"):
        load_job(tmp_path / "job.yaml")
