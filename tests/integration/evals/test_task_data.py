"""lm-eval's own tasks on local data, suites, few-shot examples, chat templates, and code that a model
wrote."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals import evaluate
from evals.code_execution import CodeEval, passes
from evals.harness import RuntimeLM
from evals.local_task import LocalTask
from evals.options import EvalOptions
from evals.rows import Heading
from evals.special import SpecialIds
from evals.task_data import SUITES
from evals.task_files import HarnessTask, parse_tasks
from evals.tasks import run_tasks
from quantize.chat.templates import folder_template
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput
from quantize.gguf.tokenizer.chat_templates import gguf_template
from quantize.recipe import RunOptions
from quantize.runtimes.base import Consume, Runtime
from quantize.runtimes.opening import open_runtime

lm_eval = pytest.importorskip("lm_eval")
RUN = RunOptions(threads=1, progress=False)
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt "
    "%}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model(make_checkpoint: Callable[..., Path]) -> Path:
    folder = make_checkpoint(num_hidden_layers=1, max_position_embeddings=1024)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return folder


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    """As llm-foundry keeps it."""
    items = [
        {
            "context": f"What is {n} and {n}?",
            "chain_of_thought": f"It is <<{n}+{n}={2 * n}>>{2 * n}.",
            "answer": str(2 * n),
        }
        for n in range(1, 9)
    ]
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    """Two of CMMLU's subjects as its repository keeps them, one answer column starting with what looks like a
    number."""
    for split in ("dev", "test"):
        (tmp_path / "cmmlu" / split).mkdir(parents=True)
        for name in ("agronomy", "anatomy"):
            lines = [
                ",Question,A,B,C,D,Answer",
                f"0,{name} {split} one,1,2,3,4,A",
                '1,"two, or more",(1),two,three,four,C',
            ]
            (tmp_path / "cmmlu" / split / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "cmmlu"


def run_plain(lm: Any, task: HarnessTask, **options: Any) -> list[dict[str, Any]]:
    outcome: dict[str, Any] = lm_eval.simple_evaluate(
        lm, tasks=[task.name], bootstrap_iters=0, task_manager=task.manager, **options
    )
    return sorted(outcome["samples"]["gsm8k"], key=lambda s: (s["doc_id"], s["filter"]))


@pytest.mark.parametrize("options", [{"num_fewshot": 2}, {"num_fewshot": 1, "apply_chat_template": True}])
def test_local_data_few_shot_and_chat_template_agree_with_plain_lm_eval(
    options: dict[str, Any], model: Path, gsm8k: Path
) -> None:
    """Its own definition, from question to filter, on the file: the same prompts, and the same answers as its
    own model class."""
    from lm_eval.models.huggingface import HFLM

    (task,) = parse_tasks([f"gsm8k={gsm8k}"], print)
    assert isinstance(task, HarnessTask)
    theirs = run_plain(
        HFLM(pretrained=str(model), dtype="float32", batch_size=1, device="cpu"), task, limit=2, **options
    )
    with open_runtime(model, RUN) as runtime:
        lm = RuntimeLM(
            runtime, SourceTokenizer.open(model), SpecialIds(0, 0), template=folder_template(model)
        )
        ours = run_plain(lm, task, limit=2, **options)
    for key in ("arguments", "resps", "filtered_resps", "exact_match"):
        assert [sample[key] for sample in ours] == [sample[key] for sample in theirs]
    prompt = ours[0]["arguments"][0][0]
    assert prompt.count("#### ") == options["num_fewshot"]
    assert prompt.count("What is 1 and 1?") == 1  # the item is not among its own examples
    assert prompt.startswith("<user>") == ("apply_chat_template" in options)

    rows = evaluate([model], tasks=[f"gsm8k={gsm8k}"], limit=2, run=RUN, **options)
    asked = {f"{s['doc_hash']} {s['prompt_hash']} {s['target_hash']}": None for s in theirs}
    for row in rows:
        assert (row.metric, row.n, row.task) == ("exact_match", 2, "gsm8k")
        assert row.environment["items_sha256"] == hashlib.sha256("\n".join(asked).encode()).hexdigest()
        assert row.protocol_parameters["num_fewshot"] == options["num_fewshot"]
        assert bool(row.protocol_parameters["chat_template"]) == ("apply_chat_template" in options)
    assert {row.protocol_parameters["filter"] for row in rows} == {"strict-match", "flexible-extract"}


def test_a_group_is_one_row_with_its_members(model: Path, subjects: Path) -> None:
    for name in ("agronomy", "anatomy"):
        assert (subjects / "dev" / f"{name}.csv").is_file()
    with pytest.raises(BadInput, match="holds no data of cmmlu_ancient_chinese"):
        parse_tasks([f"cmmlu={subjects}"], print)
    rows = evaluate(
        [model], tasks=[f"cmmlu_{n}={subjects}" for n in ("agronomy", "anatomy")], num_fewshot=1, run=RUN
    )
    assert [(row.task, row.metric, row.n) for row in rows] == [
        (f"cmmlu_{name}", metric, 2)
        for name in ("agronomy", "anatomy")
        for metric in ("accuracy", "accuracy_norm")
    ]
    for path in (Path(lm_eval.__file__).parent / "tasks" / "cmmlu").glob("cmmlu_*.yaml"):
        subject = path.stem.removeprefix("cmmlu_")
        for split in ("dev", "test"):
            shutil.copy(
                subjects / split / "anatomy.csv", subjects / split / f"{subject}.csv"
            ) if subject != "anatomy" else None
    (accuracy, _) = evaluate([model], tasks=[f"cmmlu={subjects}"], limit=1, run=RUN)
    members = accuracy.detail["members"]
    assert accuracy.task == "cmmlu"
    assert accuracy.n == len(members) == len(accuracy.samples) == 67
    assert accuracy.value == pytest.approx(np.mean(list(members.values())))


def test_suites_and_names(gsm8k: Path, tmp_path: Path) -> None:
    assert [t.name for t in parse_tasks(["quick"], print)] == list(SUITES["quick"])
    for name in SUITES["quick"]:
        (tmp_path / f"{name}.jsonl").write_text(
            '{"query": "a", "choices": ["b", "c"], "gold": 0}\n', encoding="utf-8"
        )
    local = parse_tasks([f"quick={tmp_path}"], print)
    assert [(type(t), t.name) for t in local] == [(LocalTask, name) for name in SUITES["quick"]]
    for names, expected in (
        (["quik"], "did you mean quick"),
        (["humaneval"], "--allow-code-execution"),
        (["code"], "--allow-code-execution"),
        (["quick", "arc_easy"], "arc_easy is listed twice"),
        ([f"gsm8k={tmp_path / 'none.jsonl'}"], "no such file or folder"),
        ([f"cmmlu={gsm8k}"], "give a folder with a file for each"),
    ):
        with pytest.raises(BadInput, match=expected):
            parse_tasks(names, print)
    assert [t.name for t in parse_tasks(["code"], print, allow_code=True)] == ["humaneval"]


def test_no_chat_template(make_checkpoint: Callable[..., Path], gsm8k: Path) -> None:
    with pytest.raises(BadInput, match="has no chat template"):
        evaluate([make_checkpoint()], tasks=[f"gsm8k={gsm8k}"], apply_chat_template=True, run=RUN)


def test_the_chat_template_of_a_bare_gguf(
    make_checkpoint: Callable[..., Path], gsm8k: Path, tmp_path: Path
) -> None:
    """In its metadata, among several, it gives the same prompts as the source's folder does through
    transformers."""
    from quantize.conversion import convert

    source = make_checkpoint(num_hidden_layers=1, max_position_embeddings=1024)
    path = source / "tokenizer_config.json"
    named = [
        {"name": "default", "template": "{{ bos_token }}" + TEMPLATE},
        {"name": "terse", "template": "{% for m in messages %}{{ m.content }} {% endfor %}"},
    ]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    artifact = convert(source, "gguf-f32", tmp_path / "artifact", verify="none", run=RUN)
    gguf = tmp_path / "bare.gguf"
    shutil.copy(next(artifact.folder.glob("*.gguf")), gguf)

    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, I"}]
    for name in ("", "terse"):
        ours, theirs = gguf_template(gguf, name), folder_template(source, name)
        assert (ours.text, ours.sha256) == (theirs.text, theirs.sha256)
        for messages, prompt in ((history[:1], True), (history, False)):
            assert ours.render(messages, prompt) == theirs.render(messages, prompt)
    assert gguf_template(gguf).render(history[:1], True) == "<|endoftext|><user>Hi\n<assistant>"

    def rows(**options: Any) -> list[Any]:
        return evaluate([gguf], tasks=[f"gsm8k={gsm8k}"], limit=1, run=RUN, **options)

    bare = rows(apply_chat_template=True)
    beside = rows(
        apply_chat_template=True,
        reference=source,
        metrics=["perplexity"],
        tokens=2000,
        protocol="llamacpp-64",
    )
    (beside_row,) = [
        row for row in beside if row.task and row.protocol_parameters["filter"] == "strict-match"
    ]
    (bare_row,) = [row for row in bare if row.protocol_parameters["filter"] == "strict-match"]
    assert bare_row.protocol_parameters["chat_template"] == beside_row.protocol_parameters["chat_template"]
    assert bare_row.environment["items_sha256"] == beside_row.environment["items_sha256"]
    (terse, *_) = rows(chat_template="terse")
    assert terse.protocol_parameters["chat_template"] == gguf_template(gguf, "terse").sha256
    with pytest.raises(
        BadInput, match="no chat template called 'chatty'; give --chat-template with one of default, terse"
    ):
        rows(chat_template="chatty")


class Reciter(Runtime):
    """Continues every prompt by what ``known`` says, token by token."""

    name = "reciter"
    context = 2048

    def __init__(self, source: SourceTokenizer, known: dict[str, str]):
        self.vocabulary = source.vocab_size
        self.known = {
            tuple(source.encode(prompt)): source.encode(text, add_special=False)
            for prompt, text in known.items()
        }
        self.left: list[int] = []

    def logits(self, rows: np.ndarray, first: int, consume: Consume) -> None:
        raise NotImplementedError

    def start(self, ids: Sequence[int]) -> np.ndarray:
        self.left = [*self.known[tuple(ids)], 0]
        return self.step(-1)

    def step(self, token: int) -> np.ndarray:
        logits = np.zeros(self.vocabulary, np.float32)
        logits[self.left.pop(0)] = 1
        return logits

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name}

    def close(self) -> None:
        pass


def test_code_is_run_against_its_tests(model: Path, tmp_path: Path) -> None:
    prompts = {"def double(x):\n": "    return 2 * x\n", "def triple(x):\n": "    return x + x\n"}
    path = tmp_path / "problems.jsonl"
    items = [
        {
            "task_id": n,
            "prompt": p,
            "entry_point": p[4:10],
            "test": f"def check(f):\n    assert f(3) == {6 + 3 * n}\n",
        }
        for n, p in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    source = SourceTokenizer.open(model)
    tasks = parse_tasks([f"code={path}"], print, allow_code=True)
    options, special = EvalOptions(allow_code_execution=True), SpecialIds(None, 0)
    (row,) = run_tasks(
        Reciter(source, prompts), tasks, source, Heading("m", "", "r", {}), options, False, special
    )
    assert (row.metric, row.value, row.samples, row.task) == ("pass_at_1", 0.5, (1.0, 0.0), "humaneval")


def test_limits_of_code() -> None:
    assert passes("assert 1 + 1 == 2")
    assert not passes("assert 1 + 1 == 3")
    assert not passes("while True: pass")
    assert not passes("x = bytearray(8 << 30)")
    assert not passes("import os; os.environ['HOME']")
    scores, results = CodeEval().compute(
        ["assert f() == 1", "assert f() == 2"], [["def f(): return 1", "f = 0"]] * 2, [1, 2]
    )
    assert scores == {"pass@1": pytest.approx(0.25), "pass@2": pytest.approx(0.5)}
    assert results == {0: [True, False], 1: [False, False]}
