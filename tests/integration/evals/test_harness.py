"""lm-eval on a model whose probabilities are known exactly."""

import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from bigram import HEADING, WORDS, Bigram, letters_model, make_task, naive_log_probs

from evals.harness import RuntimeLM
from evals.local_task import LocalTask
from evals.options import EvalOptions
from evals.row_groups import alike
from evals.special import SpecialIds
from evals.tasks import run_tasks
from quantize.errors import Unsupported


def naive_score(model: Bigram, context: str, continuation: str) -> tuple[float, bool]:
    ids = model.tokenize(context + continuation)
    start = len(model.tokenize(context))
    total, greedy = 0.0, True
    for i in range(start, len(ids)):
        log_probs = naive_log_probs(model.table[ids[i - 1]])
        total += log_probs[ids[i]]
        greedy &= int(log_probs.argmax()) == ids[i]
    return total, greedy


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
    # some text whose one token is that id
    best = chr(int(model.table[model.tokenize("x", False)[0]].argmax()) - 1 + 59)
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
