"""The job file is strict: whatever is wrong, one line names the file, the line, the key, and the nearest
known key."""

from pathlib import Path

import pytest

from jobs.load import load_job
from quantize.errors import BadInput
from quantize.methods.registry import parse_recipe

GOOD = """\
models: [some/model]
recipes: [gguf-q4_k_m, gptq-int4]
evaluate: {text: heldout.txt, metrics: [perplexity, divergence], tasks: [heldout.jsonl]}
benchmark: {prefill: 512, decode: 128}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_shorthand_and_long_forms_mean_the_same(tmp_path: Path) -> None:
    short = load_job(write(tmp_path, GOOD))
    long = load_job(
        write(
            tmp_path,
            """\
models:
  - source: some/model
recipes:
  - gguf-q4_k_m
  - {method: gptq, bits: 4, group_size: 128}
evaluate:
  text: heldout.txt
  tasks: heldout.jsonl
benchmark: {}
""",
        )
    )
    assert [r.digest for r in short.recipes_of(short.models[0])] == [
        r.digest for r in long.recipes_of(long.models[0])
    ]
    assert short.evaluate == long.evaluate
    assert short.benchmark == long.benchmark


def test_matrix_makes_every_combination_once(tmp_path: Path) -> None:
    job = load_job(
        write(
            tmp_path,
            "models: [a]\nrecipes:\n  - gptq-int4\n  - {method: gptq, matrix: {bits: [3, 4], group_size: "
            "[64, 128]}}\n",
        )
    )
    made = {recipe.short for recipe in job.recipes_of(job.models[0])}
    assert made == {
        "gptq-int4",
        "gptq-int4:group_size=64",
        parse_recipe("gptq:bits=3,group_size=64").short,
        parse_recipe("gptq:bits=3,group_size=128").short,
    }
    assert len(job.recipes_of(job.models[0])) == 4


def test_a_model_may_have_recipes_of_its_own_and_skip_some(tmp_path: Path) -> None:
    job = load_job(
        write(
            tmp_path,
            """\
models:
  - {source: a, recipes: [float32]}
  - {source: b, skip: [float16]}
recipes: [float32, float16]
""",
        )
    )
    assert [[r.short for r in job.recipes_of(model)] for model in job.models] == [["float32"], ["float32"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: [a]\nrecipes: [float32]\nevaluate:\n  text: x\n  metrcs: [perplexity]\n",
        "job.yaml:5: evaluate.metrcs: unknown key (did you mean metrics?)"),
        ("modles: [a]\nrecipes: [float32]\n", "job.yaml:1: modles: unknown key (did you mean models?)"),
        ("models:\n  - source: a\n    revison: main\nrecipes: [float32]\n", "job.yaml:3: models.0.revison: "
                                                                            "unknown key (did you mean "
                                                                            "revision?)"),
        ("models: [a]\nrecipes:\n  - float32\n  - gptq-int5\n", "job.yaml:4: recipes.1: unknown recipe "
                                                                "'gptq-int5' (did you mean gptq-int"),
        ("models: [a]\nrecipes:\n  - {method: gptq, bit: 4}\n", "job.yaml:3: recipes.0: "),
        ("models: [a]\nrecipes: [float32]\nbenchmark:\n  prefill: 0\n", "job.yaml:4: benchmark.prefill: "
                                                                        "should be greater than or equal to "
                                                                        "1"),
        ("models: [a]\nrecipes: [float32]\nbenchmark:\n  prefill: many\n", "job.yaml:4: benchmark.prefill: "),
        ("models: [a]\nrecipes: [float32]\nverify: maybe\n", "job.yaml:3: verify: should be 'full', "
                                                             "'tensors' or 'none'"),
        ("recipes: [float32]\n", "models: is missing"),
        ("models: []\nrecipes: [float32]\n", "job.yaml:1: models: "),
        ("models: [a]\nmodels: [b]\n", "job.yaml:2: models: given twice (first in line 1)"),
        ("models: [a\nrecipes: [b]\n", "not valid YAML"),
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("models: [a]\nrecipes:\n  - {method: gptq, matrix: {bits: 4}}\n", "job.yaml:3: recipes.0: matrix: "),
        ("models: [a]\ncalibration: {tokens: 5}\n", "job.yaml:2: calibration.tokens: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_job(write(tmp_path, text))
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert message.startswith(str(tmp_path / "job.yaml"))


def test_set_overrides_and_says_so_when_it_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    job = load_job(
        path, ["evaluate.tokens=2000", "resources.threads=1", "models.0=other/model", "benchmark=null"]
    )
    assert job.evaluate is not None
    assert (job.evaluate.tokens, job.resources.threads, job.models[0].source, job.benchmark) == (
        2000,
        1,
        "other/model",
        None,
    )
    for wrong, expected in [
        ("evaluate.limt=3", "--set evaluate.limt: evaluate.limt: unknown key (did you mean limit?)"),
        ("evaluate", "expected key=value"),
        ("models.7=x", "7 is not one of the 1 items"),
        ("verify.deeper=x", "verify"),
        ("evaluate.tokens=[", "not valid YAML"),
    ]:
        with pytest.raises(BadInput, match="--set") as caught:
            load_job(path, [wrong])
        assert expected in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="quantwright init"):
        load_job(tmp_path / "nothing.yaml")
