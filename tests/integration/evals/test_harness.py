"""lm-eval on a model whose probabilities are known exactly."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from bigram import Bigram, naive_log_probs, random_table

from evals import statistics
from evals.generations import prompts_from
from evals.harness import RuntimeLM
from evals.local_task import LocalTask
from evals.options import EvalOptions
from evals.row_groups import alike
from evals.rows import Heading
from evals.special import SpecialIds
from evals.task_files import HarnessTask, read_yaml
from evals.task_rows import pair_with_reference
from evals.tasks import run_tasks
from quantize.errors import BadInput, Unsupported
from quantize.results import EvalResult, Subject, merge_results

HEADING = Heading("model", "digest", "bigram", {})
WORDS = ["stone", "river", "cloud", "tree", "sand", "wind", "rain", "snow"]


def letters_model(seed: int = 0) -> Bigram:
    return Bigram(random_table(60, seed=seed), context=48, bos=0)


def naive_score(model: Bigram, context: str, continuation: str) -> tuple[float, bool]:
    ids = model.tokenize(context + continuation)
    start = len(model.tokenize(context))
    total, greedy = 0.0, True
    for i in range(start, len(ids)):
        log_probs = naive_log_probs(model.table[ids[i - 1]])
        total += log_probs[ids[i]]
        greedy &= int(log_probs.argmax()) == ids[i]
    return total, greedy


def make_task(form: str, n: int = 30) -> LocalTask:
    rng = np.random.default_rng(1)
    items = []
    for _ in range(n):
        words = [str(w) for w in rng.permutation(WORDS)]
        gold = int(rng.integers(3))
        if form == "choices":
            items.append(
                {
                    "query": " ".join(words[:2]),
                    "choices": [words[3], f"{words[4]} {words[5]}", words[6]],
                    "gold": gold,
                }
            )
        else:
            items.append({"context_options": words[:3], "continuation": words[4], "gold": gold})
    return LocalTask("mine", Path("mine.jsonl"), form, tuple(items))


def test_multiple_choice_equals_a_naive_loop() -> None:
    model, task = letters_model(), make_task("choices")
    rows = {
        row.metric: row
        for row in run_tasks(model, [task], None, HEADING, EvalOptions(), False, SpecialIds(0, 0))
    }
    plain, normalized = [], []
    for item in task.items:
        scores = [naive_score(model, item["query"], " " + choice)[0] for choice in item["choices"]]
        plain.append(float(np.argmax(scores) == item["gold"]))
        per_character = [score / len(choice) for score, choice in zip(scores, item["choices"], strict=True)]
        normalized.append(float(np.argmax(per_character) == item["gold"]))
    assert plain != normalized
    assert rows["accuracy"].samples == tuple(plain)
    assert rows["accuracy_norm"].samples == tuple(normalized)
    assert rows["accuracy"].value == pytest.approx(np.mean(plain))
    assert rows["accuracy"].stderr == pytest.approx(np.std(plain, ddof=1) / np.sqrt(30))
    low, high = rows["accuracy"].interval or (0, 0)
    assert low < np.mean(plain) < high
    assert (rows["accuracy"].task, rows["accuracy"].n, rows["accuracy"].ids) == ("mine", 30, "runtime")


def test_hellaswags_text_form_is_scored_as_llama_perplexity_does_too() -> None:
    model, plain = letters_model(), make_task("choices", 60)
    items = tuple(
        {**item, "choices": ["snow or " + choice + " s" * i for i, choice in enumerate(item["choices"])]}
        for item in plain.items
    )
    rows = run_tasks(
        model,
        [LocalTask("mine", Path("mine.txt"), "choices", items)],
        None,
        HEADING,
        EvalOptions(),
        False,
        SpecialIds(0, 0),
    )
    want, whole = [], []
    for item in items:
        texts = [f"{item['query']} {choice}" for choice in item["choices"]]
        # What all texts begin with, llama-perplexity leaves out of sum and count. A token is a letter here.
        shared = "".join(
            letters[0]
            for letters in itertools.takewhile(lambda x: len(set(x)) == 1, zip(*texts, strict=False))
        )
        means = [
            naive_score(model, shared, text[len(shared) :])[0] / (len(text) - len(shared)) for text in texts
        ]
        want.append(float(np.argmax(means) == item["gold"]))
        begin = len(item["query"])
        means = [naive_score(model, item["query"], text[begin:])[0] / (len(text) - begin) for text in texts]
        whole.append(float(np.argmax(means) == item["gold"]))
    assert want != whole
    (row,) = [row for row in rows if row.metric == "accuracy_per_token"]
    assert row.samples == tuple(want)
    assert row.value == pytest.approx(np.mean(want))
    assert row.stderr == pytest.approx(np.std(want, ddof=1) / np.sqrt(60))


def test_context_options_equal_a_naive_loop() -> None:
    model, task = letters_model(), make_task("contexts")
    (row,) = run_tasks(model, [task], None, HEADING, EvalOptions(), False, SpecialIds(0, 0))
    want = []
    for item in task.items:
        scores = [
            naive_score(model, context, " " + item["continuation"])[0] for context in item["context_options"]
        ]
        want.append(float(np.argmax(scores) == item["gold"]))
    assert row.samples == tuple(want)


def requests_of(pairs: list[tuple[str, ...]]) -> list:  # type: ignore[type-arg]
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def test_loglikelihood_and_greediness_with_shared_and_truncated_inputs() -> None:
    model = letters_model()
    lm = RuntimeLM(model, None, SpecialIds(0, 0))
    best = chr(
        int(model.table[model.tokenize("x", False)[0]].argmax()) - 1 + 59
    )  # some text whose one token is that id
    assert model.tokenize(best, False) == [int(model.table[model.tokenize("x", False)[0]].argmax())]
    pairs = [("ab", "c"), ("ab", "d"), ("ab", "cd"), ("x", best), ("  ", "ab"), ("", "ab"), ("q" * 100, "rs")]
    got = lm.loglikelihood(requests_of(pairs))
    assert model.runs == 6  # "ab" + c and "ab" + d share one input
    for (context, continuation), (value, greedy) in zip(pairs, got, strict=True):
        if not context.strip():
            continuation, context = context + continuation, ""
        want = naive_score(model, context, continuation)
        assert value == pytest.approx(want[0], rel=1e-6)
        assert greedy == want[1]
    assert got[3][1] is True


def test_rows_that_begin_alike_are_grouped_where_that_saves_work() -> None:
    question, other = tuple(range(20)), tuple(range(100, 130))
    rows = [
        (*question, 50),
        (*question, 51, 52),
        (*question, 51, 53),
        (*other, 1),
        (*other, 2),
        (*question[:3], 99),
    ]
    groups = alike(sorted(rows))
    assert groups == [
        [(*question, 50), (*question, 51, 52), (*question, 51, 53)],
        [(*question[:3], 99)],
        [(*other, 1), (*other, 2)],
    ]
    assert sorted(ids for group in groups for ids in group) == sorted(rows)


def test_llamacpp_shares_beginnings_and_gives_the_same(make_checkpoint, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("llama_cpp")
    from quantize import convert
    from quantize.recipe import RunOptions
    from quantize.runtimes import llamacpp
    from quantize.runtimes.opening import open_runtime

    run = RunOptions(device="cpu", threads=1, progress=False)
    folder = convert(
        make_checkpoint(num_hidden_layers=1), "gguf-f32", tmp_path / "g", verify="none", run=run
    ).folder
    query = "Once there was a stone in the river, and"
    pairs = [(query, f" the {word} came by") for word in WORDS] + [
        ("Rain", " and"),
        (query + " then", " it"),
        ("x" * 900, " end"),
    ]
    monkeypatch.setattr(llamacpp, "PACKED", 64)  # some groups to a call
    with open_runtime(folder, run, exact=True) as runtime:
        shared = RuntimeLM(runtime, None, SpecialIds(0, 0)).loglikelihood(requests_of(pairs))
        monkeypatch.setattr(type(runtime), "shares_beginnings", False)
        single = RuntimeLM(runtime, None, SpecialIds(0, 0)).loglikelihood(requests_of(pairs))
    assert [value for value, _ in shared] == pytest.approx([value for value, _ in single], rel=1e-5)
    assert [greedy for _, greedy in shared] == [greedy for _, greedy in single]


def test_rolling_scores_every_token_once_in_windows() -> None:
    model = letters_model()
    lm = RuntimeLM(model, None, SpecialIds(0, 0))
    text = "the quick brown fox jumps over the lazy dog and runs far away from here, then returns"
    ids = model.tokenize(text)
    assert len(ids) > model.context
    want = sum(naive_log_probs(model.table[a])[b] for a, b in zip([0, *ids[:-1]], ids, strict=True))
    assert lm.loglikelihood_rolling(requests_of([(text,), ("ab",)]))[0] == pytest.approx(want, rel=1e-6)


def test_generation_needs_a_tokenizer_and_is_greedy(make_checkpoint) -> None:  # type: ignore[no-untyped-def]
    from quantize.checkpoint.tokenizer import SourceTokenizer

    with pytest.raises(Unsupported, match="needs the source's tokenizer"):
        RuntimeLM(letters_model(), None, SpecialIds(0, 0)).generate_until(
            requests_of([("a", {"until": ["b"]})])
        )
    source = SourceTokenizer.open(make_checkpoint())
    rng = np.random.default_rng(0)
    table = np.zeros((4096, 4096), np.float32)
    successor = rng.integers(300, 4096, 4096)
    table[np.arange(4096), successor] = 5
    model = Bigram(table, context=128)
    lm = RuntimeLM(model, source, SpecialIds(0, 0))
    ids = source.encode("Hello there")
    want, token = [], ids[-1]
    for _ in range(12):
        token = int(successor[token])
        want.append(token)
    text = source.decode(want)
    assert lm.generate_until(requests_of([("Hello there", {"until": [], "max_gen_toks": 12})])) == [text]
    stop = text[5:8]
    assert lm.generate_until(requests_of([("Hello there", {"until": [stop], "max_gen_toks": 12})])) == [
        text.split(stop)[0]
    ]
    with pytest.raises(Unsupported, match="sampling"):
        lm.generate_until(requests_of([("a", {"until": ["b"], "do_sample": True, "temperature": 0.7})]))


def test_candidates_are_paired_with_the_reference() -> None:
    from dataclasses import replace

    task = make_task("choices", 60)
    special = SpecialIds(0, 0)
    reference = run_tasks(
        letters_model(), [task], None, replace(HEADING, role="reference"), EvalOptions(), False, special
    )
    others = [
        run_tasks(letters_model(seed), [task], None, HEADING, EvalOptions(), False, special)
        for seed in (1, 2)
    ]
    rows = pair_with_reference([*reference, *others[0], *others[1]])
    assert "vs_reference" not in rows[0].detail
    for row in rows[2:]:
        paired = row.detail["vs_reference"]
        base = next(r for r in reference if r.metric == row.metric)
        assert paired["difference"] == pytest.approx(row.value - base.value)
        assert paired["p_mcnemar"] <= paired["p_holm"] <= 1


class Speaking(Bigram):
    """Spells tokens, and keeps the texts that it was given."""

    def __init__(self, table: np.ndarray, context: int = 2048):
        super().__init__(table, context=context, bos=0)
        self.heard: list[str] = []

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        self.heard.append(text)
        return super().tokenize(text, add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + i % 26) if i else "" for i in ids)


@pytest.mark.parametrize("shots", [2, 5])
def test_an_item_is_not_among_its_own_examples(shots: int) -> None:
    items = tuple(
        {"query": f"Item {n}: say", "choices": [f"alpha{n}", f"beta{n}"], "gold": n % 2} for n in range(6)
    )
    task, options = LocalTask("own", Path("own.jsonl"), "choices", items), EvalOptions(num_fewshot=shots)
    model = Speaking(random_table(60))
    (row, _) = run_tasks(model, [task], None, HEADING, options, False, SpecialIds(0, 0))
    asked = [text for text in model.heard if text.count("Item ") == shots + 1]
    assert len(asked) >= 6
    for text in asked:
        own = re.findall(r"Item \d: say", text)[-1]
        assert text.count(own) == 1
    assert "remarks" not in row.detail
    with pytest.raises(BadInput, match=r"own has 6 items.*ask for at most 5"):
        run_tasks(model, [task], None, HEADING, EvalOptions(num_fewshot=6), False, SpecialIds(0, 0))


def yaml_task(folder: Path, more: str) -> HarnessTask:
    data = folder / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"Item {n}: say", "answer": "bcd"[n % 3]}) + "\n" for n in range(9))
    )
    path = folder / "say.yaml"
    path.write_text(
        f"task: say\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        f"doc_to_text: question\ndoc_to_target: answer\n{more}"
    )
    return read_yaml(path)


def test_a_task_whose_examples_are_what_it_measures_says_so(tmp_path: Path) -> None:
    metrics = (
        "output_type: loglikelihood\nmetric_list:\n- {metric: acc, aggregation: mean, "
        "higher_is_better: true}\n"
    )
    for more, said in ((metrics, True), (metrics + "fewshot_split: test\n", False)):
        task = yaml_task(tmp_path, more)
        options = EvalOptions(num_fewshot=2)
        (row,) = run_tasks(
            Speaking(random_table(60)), [task], None, HEADING, options, False, SpecialIds(0, 0)
        )
        assert any("can be its own example" in remark for remark in row.detail.get("remarks", ())) == said


def test_examples_from_validation_data_leave_the_item_out(tmp_path: Path) -> None:
    """A task of lm-eval's without a test split, on a file."""
    from evals.task_files import parse_tasks

    endings = ["one.", "two.", "three.", "four."]
    items = [
        {"ctx_a": f"Item {n}", "ctx_b": "goes", "activity_label": "A", "endings": endings, "label": n % 4}
        for n in range(6)
    ]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    model = Speaking(random_table(60))
    tasks = parse_tasks([f"hellaswag={tmp_path / 'h.jsonl'}"], print)
    (row, *_) = run_tasks(model, tasks, None, HEADING, EvalOptions(num_fewshot=2), False, SpecialIds(0, 0))
    asked = [text for text in model.heard if text.count("Item ") == 3]
    assert asked
    assert all(text.count(re.findall(r"Item \d", text)[-1]) == 1 for text in asked)
    assert "remarks" not in row.detail


FILTERS = """output_type: generate_until
generation_kwargs: {until: ["|"], max_gen_toks: 3}
filter_list:
- {name: first, filter: [{function: regex, regex_pattern: "^(.)"}, {function: take_first}]}
- {name: last, filter: [{function: regex, regex_pattern: "(.)$"}, {function: take_first}]}
metric_list:
- {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def test_rows_are_paired_filter_by_filter(tmp_path: Path) -> None:
    from dataclasses import replace

    task = yaml_task(tmp_path, FILTERS)
    model, special = Speaking(random_table(60, seed=3)), SpecialIds(0, 0)
    heading = replace(HEADING, role="reference")
    reference = run_tasks(model, [task], None, heading, EvalOptions(), False, special)
    for row in reference:  # whatever the model says: two filters that differ, on the same items
        right = tuple(
            float(n % 3 == (0 if row.protocol_parameters["filter"] == "first" else 1)) for n in range(9)
        )
        reference[reference.index(row)] = replace(row, samples=right, value=float(np.mean(right)) - 0.0)
    candidates = [replace(row, role="", samples=(1.0,) * 5 + (0.0,) * 4, value=5 / 9) for row in reference]
    assert [row.protocol_parameters["filter"] for row in candidates] == ["first", "last"]
    for order in (reference, reference[::-1]):
        paired = pair_with_reference([*order, *candidates])[2:]
        for row, base in zip(paired, reference, strict=True):
            wanted = statistics.accuracy_difference(np.array(row.samples), np.array(base.samples))
            assert row.detail["vs_reference"]["p_mcnemar"] == wanted.p_value
            assert row.detail["vs_reference"]["interval"] == pytest.approx(wanted.interval)
    other = [replace(row, environment={"items_sha256": "others"}) for row in candidates]
    assert all("vs_reference" not in row.detail for row in pair_with_reference([*reference, *other])[2:])


def test_results_of_other_filters_and_examples_are_kept(tmp_path: Path) -> None:
    def row(value: float, **parameters: object) -> EvalResult:
        return EvalResult(
            "a", "exact_match", "lm-eval", value, task="gsm8k", protocol_parameters=dict(parameters)
        )

    subject = Subject("a", "recipe", digest="1")
    merge_results(
        tmp_path / "a.json",
        subject,
        [row(1, filter="strict", num_fewshot=5), row(2, filter="flexible", num_fewshot=5)],
    )
    merge_results(
        tmp_path / "a.json",
        subject,
        [row(3, filter="strict", num_fewshot=0), row(4, filter="strict", num_fewshot=5)],
    )
    found = json.loads((tmp_path / "a.json").read_text())["results"]
    assert sorted(entry["value"] for entry in found) == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (" ".join(f"w{n}" for n in range(300)), " ".join(f"w{n}" for n in range(100, 124))),
        ("量化模型的质量和速度。" * 40, ("量化模型的质量和速度。" * 40)[146 : 146 + 48]),
        ("\n".join("量化模型的质量和速度要一起看才有意义。" for _ in range(40)), None),
    ],
)
def test_prompts_are_cut_from_a_text_with_or_without_spaces(text: str, prompt: str | None) -> None:
    found = prompts_from(text)
    assert len(found) == 3
    assert all(part in " ".join(text.split()) for part in found)
    assert max(map(len, found)) < 150
    assert prompt is None or found[1] == prompt
    for short in ("some words only", "太短的文本没有空格所以算字"):
        with pytest.raises(BadInput, match=r"3 words|13 characters"):
            prompts_from(short)
