"""Calibration on conversations: by the model's chat template, as transformers renders it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantize.calibration.texts import calibration_text
from quantize.calibration.windows import context_length, load_calibration
from quantize.chat.conversations import text_of_rows
from quantize.errors import BadInput
from quantize.recipe import CalibrationOptions
from quantize.sources.opening import open_checkpoint

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% "
    "endif %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}<{{ m.role }}>{{ m.content }}\n{% "
    "endfor %}"
)
TURNS = [{"role": "user", "content": "Wie groß ist 1+1?"}, {"role": "assistant", "content": "Zwei."}]
SHARED = [{"from": "human", "value": "Wie groß ist 1+1?"}, {"from": "gpt", "value": "Zwei."}]


@pytest.fixture(scope="module")
def folders(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models, without weights: one with a chat template, one without."""
    root = tmp_path_factory.mktemp("models")
    for name in ("chat", "base"):
        (root / name).mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            shutil.copy(demo_checkpoint / file, root / name)
    (root / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    return root / "chat", root / "base"


def test_conversations_go_through_the_chat_template(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    chat, base = folders
    path = tmp_path / "chat.jsonl"
    rows = [
        {"messages": TURNS},
        {"conversations": SHARED},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"messages": []},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = calibration_text(str(path), chat)
    assert found.body == AutoTokenizer.from_pretrained(chat).apply_chat_template(TURNS, tokenize=False) * 3
    assert found.read_as == "3 conversations rendered with the model's chat template"
    bare = calibration_text(str(path), base)
    assert bare.body == "\n\n".join(["Wie groß ist 1+1?\nZwei."] * 3)
    assert bare.read_as == "3 conversations reduced to their text, because there is no chat template"
    listed = tmp_path / "chat.json"
    listed.write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    assert calibration_text(str(listed), chat).body == found.body


def test_messages_that_a_template_refuses(folders: tuple[Path, Path]) -> None:
    chat, _ = folders
    rows = [[{"role": "system", "content": "S"}, *TURNS], [{"role": "tool", "content": "T"}], TURNS]
    found = text_of_rows("data", [("data", {"messages": row}) for row in rows], chat)
    turns = "<|endoftext|><user>Wie groß ist 1+1?\n<assistant>Zwei.\n"
    assert found.body == f"{turns}\n\nT\n\n{turns}"
    assert found.read_as == (
        "2 conversations rendered with the model's chat template, 1 without their system "
        "message; 1 conversation reduced to their text, because the chat template refuses them: no tools"
    )


@pytest.mark.parametrize(
    ("rows", "body"),
    [
        ([{"text": "eins"}, {"text": ""}, {"text": None, "id": 3}, {"text": "zwei"}], "eins\n\nzwei"),
        (["eins", "zwei"], "eins\n\nzwei"),
        ([{"content": "eins"}], "eins"),
        ([{"prompt": "1+1=", "completion": "2"}], "1+1=2"),
        (
            [
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Was?"}]}
                    ]
                }
            ],
            "Was?",
        ),
        (
            [{"messages": [{"role": "assistant", "content": None, "tool_calls": []}, *TURNS]}],
            "Wie groß ist 1+1?\nZwei.",
        ),
    ],
)
def test_rows_of_text(rows: list[Any], body: str, folders: tuple[Path, Path]) -> None:
    """As Hub datasets have them in columns, and lines of JSON."""
    assert text_of_rows("data", [("data", row) for row in rows], folders[1]).body == body


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"query": "a", "choices": ["b"], "gold": 0}',
            r"chat.jsonl:2: is an object with query, choices, gold; expected {\"text\"",
        ),
        ("7", r"chat.jsonl:2: is int; expected"),
        ('{"messages": ["hello"]}', r"chat.jsonl:2: holds a message without role and content; expected"),
        ('{"messages": [', r"chat.jsonl:2: not valid JSON .*one item per line"),
        ("[" * 5000, r"chat.jsonl:2: nested deeper than"),
    ],
)
def test_what_is_no_conversation_is_refused(
    line: str, message: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": TURNS}) + "\n" + line + "\n")
    with pytest.raises(BadInput, match=message):
        calibration_text(str(path), folders[0])
    path.write_text('{"text": ""}\n')
    with pytest.raises(BadInput, match=r"chat.jsonl: holds no text; expected"):
        calibration_text(str(path), folders[0])


def test_what_was_assumed_goes_into_the_manifest(demo_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": TURNS}) + "\n" for _ in range(60)))
    options = CalibrationOptions(source=str(path), tokens=256, sequence_length=128)
    found = load_calibration(open_checkpoint(str(demo_checkpoint)), options)
    assert [note.why for note in found.notes] == [
        f"{path}: read as 60 conversations reduced to their text, because there is no chat template"
    ]


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 64}, 64), ({"n_positions": 32}, 32),
        ({"text_config": {"max_position_embeddings": 16}}, 16),
        ({"max_position_embeddings": None, "n_ctx": 8}, 8), ({"max_position_embeddings": -1}, 0), ({}, 0),
    ],
)  # fmt: skip
def test_windows_are_no_longer_than_the_model_takes(config: dict[str, Any], length: int) -> None:
    assert context_length(config) == length
