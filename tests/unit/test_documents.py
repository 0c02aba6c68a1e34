"""Text files as people save them: one reading for calibration, --text, tasks, prompts."""

import codecs
import json
from pathlib import Path

import pytest

from evals.generations import read_prompts
from evals.task_files import read_hellaswag, read_jsonl
from quantize.calibration.texts import calibration_text, read_text
from quantize.documents import read_document, read_rows
from quantize.errors import BadInput

WORDS = (
    "Grüße aus Köln: “déjà vu” – naïve façade.\n\nA second paragraph; more English words than others, "
    "to be a text.\n"
)
PLAIN = WORDS.replace("“", '"').replace("”", '"').replace("–", "-")  # in Latin-1

SAVED: list[tuple[str, bytes, str, str]] = [
    ("utf-8", WORDS.encode(), WORDS, ""),
    ("mark", codecs.BOM_UTF8 + WORDS.encode(), WORDS, "UTF-8 with a byte order mark"),
    ("crlf", WORDS.replace("\n", "\r\n").encode(), WORDS, "UTF-8 with CR LF line ends"),
    ("utf-16", WORDS.encode("utf-16"), WORDS, "UTF-16"),
    ("utf-16-be", codecs.BOM_UTF16_BE + WORDS.encode("utf-16-be"), WORDS, "UTF-16"),
    ("utf-32", WORDS.encode("utf-32"), WORDS, "UTF-32"),
    ("utf-16 unmarked", WORDS.encode("utf-16-le"), WORDS, "UTF-16 (without a byte order mark)"),
    ("notepad", WORDS.replace("\n", "\r\n").encode("utf-16"), WORDS, "UTF-16 with CR LF line ends"),
    ("windows", WORDS.encode("cp1252"), WORDS, "Windows-1252 (it is not UTF-8)"),
    ("latin-1", PLAIN.encode("latin-1"), PLAIN, "Windows-1252 (it is not UTF-8)"),
    ("long line", ("word " * 400_000).encode(), "word " * 400_000, ""),
    ("chinese", "量化模型的质量。\n".encode(), "量化模型的质量。\n", ""),
    ("line separators", "a\u2028b\x0bc\x85d\n".encode(), "a\u2028b\x0bc\x85d\n", ""),
]


@pytest.mark.parametrize(
    ("raw", "text", "read_as"), [row[1:] for row in SAVED], ids=[row[0] for row in SAVED]
)
def test_one_reading(raw: bytes, text: str, read_as: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    document = read_document(path)
    assert (document.text, document.read_as) == (text, read_as)
    found = calibration_text(str(path), tmp_path)
    assert (found.body, found.read_as) == (text, read_as)
    assert read_text(path, None).body == text
    assert read_prompts(path) == [line for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize(
    "raw",
    [
        "Текст по-русски, не в UTF-8.".encode("cp1251") * 9,
        "量化模型的质量，不是UTF-8。".encode("gbk") * 9,
        WORDS.encode()[:-1].replace("ü".encode(), b"\xc3", 1),  # UTF-8, damaged in one place
        b"\x7fELF\x02\x01\x01\x00\x00\x00\xff\xfe" * 30,
        b"\xff\xfe\x00",
    ],
)
def test_what_cannot_be_told_is_refused(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=r"text.txt: not UTF-8 text.*save it as UTF-8"):
        read_document(path)


@pytest.mark.parametrize(
    "encode", [lambda s: s.replace("\n", "\r\n").encode("utf-8-sig"), lambda s: s.encode("utf-16")]
)
def test_tasks_and_prompts_in_every_form(encode, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    items = [{"query": f"größe {n}", "choices": ["a", "b" * 200_000], "gold": n} for n in (0, 1)]
    lines = "\n\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n\n"
    (tmp_path / "mine.jsonl").write_bytes(encode(lines))
    assert read_jsonl(tmp_path / "mine.jsonl").items == tuple(items)
    (tmp_path / "six.txt").write_bytes(encode("größe\n1\na\nb\nc\nd\n\n\n"))
    assert read_hellaswag(tmp_path / "six.txt").items == (
        {"query": "größe", "choices": list("abcd"), "gold": 1},
    )
    (tmp_path / "prompts.jsonl").write_bytes(encode('{"prompt": "zwei\\nZeilen"}\n\n'))
    assert read_prompts(tmp_path / "prompts.jsonl") == ["zwei\nZeilen"]
    (tmp_path / "table.csv").write_bytes(encode(f'Frage,A\n"größer, als",{"x" * 200_000}\n'))
    rows = read_rows(tmp_path / "table.csv", read_document(tmp_path / "table.csv"))
    assert [row for _, row in rows] == [{"Frage": "größer, als", "A": "x" * 200_000}]


@pytest.mark.parametrize(
    "encode", [lambda s: s.replace("\n", "\r\n").encode("utf-8-sig"), lambda s: s.encode("cp1252")]
)
def test_data_of_lm_evals_tasks(encode, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from evals.task_data import _in_harness_form

    for name, text in (
        ("lines.jsonl", '{"question": "größe"}\n\n{"question": "b"}\n'),
        ("list.json", '[\n{"question": "größe"},\n{"question": "b"}\n]\n'),
        ("table.csv", "question\ngröße\nb\n"),
    ):
        (tmp_path / name).write_bytes(encode(text))
        made = _in_harness_form(tmp_path / name, tmp_path)
        raw = made.read_bytes().decode()
        found = json.loads(raw) if made.suffix == ".json" else [json.loads(line) for line in raw.splitlines()]
        assert found == [{"question": "größe"}, {"question": "b"}]
