import json
from pathlib import Path

import pytest
from other_tools import export_yaml

from evals.heldout_task import CHOICE_WORDS, CONTEXT_WORDS, make_items
from evals.task_files import parse_tasks, read_hellaswag, read_jsonl
from quantize.errors import BadInput

GOOD = {"query": "a", "choices": ["b", "c"], "gold": 1}


def write(path: Path, *lines: object) -> Path:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return path


def test_the_three_forms(tmp_path: Path) -> None:
    choices = read_jsonl(write(tmp_path / "a.jsonl", GOOD, "", GOOD | {"extra": 5}))
    assert (choices.form, len(choices.items), choices.delimiter, choices.name) == ("choices", 2, " ", "a")
    assert choices.items[1] == GOOD
    contexts = read_jsonl(
        write(
            tmp_path / "b.jsonl",
            {"context_options": ["x", "y"], "continuation": "z", "gold": 0, "delimiter": ""},
        )
    )
    assert (contexts.form, contexts.delimiter) == ("contexts", "")
    plain = read_jsonl(write(tmp_path / "c.jsonl", {"context": "x", "continuation": "z"}))
    assert plain.form == "continuation"


def test_a_task_remembers_how_it_was_typed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", GOOD)
    typed = [str(file), "held-out", f"piqa={file}"]
    assert [task.typed for task in parse_tasks(typed, print)] == typed


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((GOOD, "{not json"), ":2: not valid JSON"),
        ((GOOD, [1]), ":2: expected an object"),
        (({"query": "a"},), ":1: has the keys query; expected {query, choices, gold} or"),
        ((GOOD, {"query": "a", "choices": ["b", "c"]}), ":2: lacks 'gold'"),
        ((GOOD, GOOD, GOOD | {"gold": 2}), ":3: gold is 2, expected 0 to 1"),
        ((GOOD | {"gold": True},), ":1: gold must be int"),
        ((GOOD | {"choices": ["only"]},), ":1: expected at least two"),
        ((GOOD | {"choices": ["a", ""]},), ":1: expected at least two non-empty"),
        (({"context": "a", "continuation": " "},), ":1: continuation is empty"),
        ((GOOD, GOOD | {"delimiter": "\n"}), ":2: delimiter"),
        (("",), "is empty"),
    ],
)
def test_malformed_items_are_named_by_line(tmp_path: Path, lines: tuple[object, ...], expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_jsonl(write(tmp_path / "t.jsonl", *lines))
    assert expected in str(caught.value)
    assert str(tmp_path / "t.jsonl") in str(caught.value)


def test_hellaswag_text(tmp_path: Path) -> None:
    task = read_hellaswag(write(tmp_path / "h.txt", "A man sits. he", "3", "a.", "b.", "c.", "d."))
    assert task.items == ({"query": "A man sits. he", "choices": ["a.", "b.", "c.", "d."], "gold": 3},)
    with pytest.raises(BadInput, match="not a multiple of 6"):
        read_hellaswag(write(tmp_path / "h.txt", "A", "3", "a."))
    with pytest.raises(BadInput, match=r"h\.txt:2: expected the number"):
        read_hellaswag(write(tmp_path / "h.txt", "A", "x", "a.", "b.", "c.", "d."))


@pytest.mark.long
def test_names_of_lm_eval() -> None:
    """Reads lm-eval's own thousands of task files."""
    pytest.importorskip("lm_eval")
    assert [t.name for t in parse_tasks(["arc_easy"], print)] == ["arc_easy"]
    with pytest.raises(BadInput, match=r"unknown task 'arc_esy'.*did you mean.*arc_easy"):
        parse_tasks(["arc_esy"], print)


def test_names(tmp_path: Path) -> None:
    said: list[str] = []
    assert [t.name for t in parse_tasks(["held-out"], said.append)] == ["heldout"]
    assert "held-out text" in said[0]
    with pytest.raises(BadInput, match="listed twice"):
        parse_tasks(["held-out", "held-out"], said.append)
    with pytest.raises(BadInput, match="no such text file"):
        parse_tasks([str(tmp_path / "none.jsonl")], said.append)
    with pytest.raises(BadInput, match=r"unknown task .*a\.csv.*a local task is a \.jsonl"):
        parse_tasks(["a.csv"], said.append)
    (tmp_path / "bad.yaml").write_text("task: [", encoding="utf-8")
    with pytest.raises(BadInput, match=r"bad\.yaml: line \d+: not valid YAML"):
        parse_tasks([str(tmp_path / "bad.yaml")], said.append)
    (tmp_path / "other.yaml").write_text("a: 1", encoding="utf-8")
    with pytest.raises(BadInput, match="not a task of lm-eval"):
        parse_tasks([str(tmp_path / "other.yaml")], said.append)


def test_exported_yaml_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    task = read_jsonl(write(tmp_path / "mine.jsonl", GOOD))
    path = export_yaml(task, tmp_path / "out")
    (read,) = parse_tasks([str(path)], print)
    assert read.name == str(path)
    assert [json.loads(line) for line in (tmp_path / "out" / "mine.jsonl").read_text().splitlines()] == [GOOD]


def test_the_held_out_task_is_the_same_for_the_same_text(tmp_path: Path) -> None:
    text = " ".join(f"word{i}" for i in range(9000))
    items = make_items(text, 50)
    assert items == make_items(text, 50)
    assert len(items) == 50
    for item in items:
        assert len(item["choices"]) == len(set(item["choices"])) == 4
        last, first = item["query"].split()[-1], item["choices"][item["gold"]].split()[0]
        assert int(first.removeprefix("word")) == int(last.removeprefix("word")) + 1
        assert len(item["query"].split()) == CONTEXT_WORDS
        assert all(len(choice.split()) == CHOICE_WORDS for choice in item["choices"])
    assert len({item["gold"] for item in items}) == 4
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n")
    assert list(read_jsonl(tmp_path / "t.jsonl").items) == items
    with pytest.raises(BadInput, match="needs at least 4"):
        make_items("too short")
