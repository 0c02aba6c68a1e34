"""Reading what a stranger may have written: bounds, names, links."""

import json
import os
from pathlib import Path

import pytest

from quantize.errors import BadInput
from quantize.files import files_inside, front_matter, inside, parse_json, parse_yaml, plain_name, read_json


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 70 + b"]" * 70, "nested deeper"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b"[" + b"," * 8_000_001, "entries"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_json_is_bounded(raw: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse_json(raw, "here")


def test_json_as_people_save_it(tmp_path: Path) -> None:
    assert parse_json('\ufeff{"a": "\\ud83d\\ude00 é"}'.encode(), "here") == {"a": "😀 é"}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(BadInput, match="expected a JSON object"):
        read_json(tmp_path / "a.json")
    with pytest.raises(BadInput, match="missing"):
        read_json(tmp_path / "b.json")
    os.mkfifo(tmp_path / "pipe.json")  # opening it would wait for ever
    with pytest.raises(BadInput, match="not a regular file"):
        read_json(tmp_path / "pipe.json")
    (tmp_path / "large.json").write_text(json.dumps({"a": "x" * 100}))
    with pytest.raises(BadInput, match="more than the limit for such a file"):
        read_json(tmp_path / "large.json", 50)


def test_yaml_without_aliases_or_dates() -> None:
    assert parse_yaml("a: 1\ndate: 2020-13-45\nother: 2020-01-02\n", "here") == {
        "a": 1,
        "date": "2020-13-45",
        "other": "2020-01-02",
    }
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    with pytest.raises(BadInput, match=r"here: line 2: YAML aliases"):
        parse_yaml(bomb, "here")
    for text, says in [
        ("a: [1", "not valid YAML"),
        ("[" * 5000, "nested deeper"),
        ("a: !!python/name:os.system ''", "not valid YAML"),
    ]:
        with pytest.raises(BadInput, match=says):
            parse_yaml(text, "here")


def test_front_matter() -> None:
    assert front_matter("# title\n", "card") == {}
    assert front_matter("---\nlicense: mit\n---\n# title\n---\n", "card") == {"license": "mit"}
    assert front_matter("---\n---\n", "card") == {}
    with pytest.raises(BadInput, match="not a mapping"):
        front_matter("---\n- a\n---\n", "card")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../a",
        "a/../b",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "C:a",
        "a\x00",
        "a\nb",
        "x" * 2000,
        None,
        5,
    ],
)
def test_names_that_lead_out(name: object) -> None:
    with pytest.raises(BadInput, match="plain relative path"):
        plain_name(name, "manifest.json")


def test_links_are_followed_inside_the_folder_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hf_token")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "real.json").write_text("{}")
    (folder / "within.json").symlink_to("real.json")
    (folder / "out.json").symlink_to(secret)
    (folder / "sub" / "up").symlink_to(tmp_path)
    for name in ("real.json", "within.json", "absent.json"):
        assert inside(folder, name) == folder / name
    for name in ("out.json", "sub/up/secret"):
        with pytest.raises(BadInput, match="outside the folder"):
            inside(folder, name)
    with pytest.raises(BadInput, match=r"out\.json is a link"):
        list(files_inside(folder, "*.json"))
    linked = tmp_path / "linked"
    linked.symlink_to(folder)  # the person named it
    assert inside(linked, "real.json") == linked / "real.json"


def test_the_hub_caches_own_links(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1234").write_text("{}")
    (tmp_path / "token").write_text("hf_x")
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    (snapshot / "merges.txt").symlink_to(tmp_path / "token")
    assert inside(snapshot, "config.json").read_text() == "{}"
    with pytest.raises(BadInput, match="outside the folder"):
        inside(snapshot, "merges.txt")
