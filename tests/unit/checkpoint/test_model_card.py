"""What is taken from a source's model card, and what is made of cards as people and machines write them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import damaged, faults, mutations, sample

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.model_card import license_files, read_model_card
from quantize.conversion import convert
from quantize.errors import BadInput
from quantize.gguf.container.writer import pack_value
from quantize.gguf.metadata import MAX_STEM_CHARACTERS, file_name, general_kvs, load_metadata
from quantize.kernels.block_types import FILE_TYPES
from quantize.methods.gguf import Gguf
from quantize.methods.gguf_recipe import GgufRecipe
from quantize.sources.opening import open_checkpoint

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.fixture
def folder(demo_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_checkpoint, tmp_path / "model"))


def write(folder: Path, head: str) -> None:
    (folder / "README.md").write_text(f"---\n{head}\n---\n# Model\n", encoding="utf-8")


def metadata_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Of the GGUF that would be written."""
    work = Gguf().plan(checkpoint, GgufRecipe(type="q8_0"))
    return work.contents(work._importances).kvs


@pytest.mark.parametrize(
    ("head", "key", "value"),
    [
        ("tags:\n-\n- chat", "general.tags", ["chat"]),
        ("language:\n- en\n-", "general.languages", ["en"]),
        ("language: [en, no]", "general.languages", ["en", "no"]),
        ("language: no", "general.languages", ["no"]),
        ("version: 1.10", "general.version", "1.10"),
        ("model_name: 5", "general.name", "5"),
        ("license: [mit, apache-2.0]", "general.license", "mit,apache-2.0"),
        ("date: 2020-13-45\nlicense: mit", "general.license", "mit"),
        ("tags:\n\t- chat", "general.tags", ["chat"]),
        ("base_model: org/base", "general.base_model.0.repo_url", "https://huggingface.co/org/base"),
        ("base_model:\n- name: Base\n  repo_url: 5", "general.base_model.0.repo_url", "5"),
        ("datasets: [null, org/data]", "general.dataset.0.repo_url", "https://huggingface.co/org/data"),
    ],
)
def test_cards_as_people_write_them(head: str, key: str, value: object, folder: Path) -> None:
    write(folder, head)
    assert read_model_card(folder).remarks == ()
    kvs = metadata_of(open_checkpoint(folder))
    assert kvs[key][0] == value
    for name, (content, kind) in kvs.items():
        pack_value(name, content, kind)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (BOMB + "license: *a9", "not read"),
        ("license: [mit", "not read"),
        ("- mit", "not read"),
        ("license: " + "[" * 100 + "]" * 100, "not read"),
        ("license:\n  name: mit", "license: an entry is left out"),
        ("tags: [[a, b], c]", "tags: an entry is left out"),
        ("author: [a, b]", "author: an entry is left out"),
    ],
)
def test_what_a_card_cannot_say_is_noted(head: str, what: str, folder: Path, tmp_path: Path) -> None:
    write(folder, head)
    manifest = convert(folder, "gguf-q8_0", tmp_path / "out", verify="none").manifest
    note = next(note for note in manifest.notes if note.tensor == "README.md")
    assert note.what.startswith(what)
    assert str(tmp_path) not in note.why
    assert manifest.source.license is None


def test_a_card_of_other_bytes_and_a_link_out(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_bytes("---\nlicense: mit\nauthor: Müller\n---\n".encode("latin-1"))
    assert "UTF-8" in read_model_card(folder).remarks[0][1]
    (folder / "README.md").write_bytes("\ufeff---\r\nlicense: mit\r\n---\r\n".encode())
    assert read_model_card(folder).license == "mit"
    (folder / "README.md").unlink()
    (tmp_path / "secret").write_text("---\nlicense: hf_token\n---\n")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="outside the folder"):
        convert(folder, "float32", tmp_path / "out", verify="none")


def test_the_terms_go_with_the_weights(folder: Path, tmp_path: Path) -> None:
    write(
        folder,
        "license: other\nlicense_name: acme-1.0\nlicense_link: LICENSE\nlanguage: [de, fr]\ntags: [chat]",
    )
    for name in ("LICENSE", "USE_POLICY.md", "MODEL_LICENSE", "license.txt", "Licence"):
        (folder / name).write_text(name)
    for name in ("licensed.bin", "notices", "README"):
        (folder / name).write_text(name)
    terms = ["LICENSE", "Licence", "MODEL_LICENSE", "USE_POLICY.md", "license.txt"]
    assert [path.name for path in license_files(folder)] == terms
    for recipe in ("float32", "gguf-q8_0"):
        artifact = convert(folder, recipe, tmp_path / recipe, verify="none")
        assert set(terms) <= set(artifact.manifest.files)
        source = artifact.manifest.source
        assert (source.license, source.license_name, source.license_link) == ("other", "acme-1.0", "LICENSE")
        assert (source.languages, source.tags) == (("de", "fr"), ("chat",))
    (tmp_path / "token").write_text("hf_x")
    (folder / "NOTICE").symlink_to(tmp_path / "token")
    with pytest.raises(BadInput, match="NOTICE is a link"):
        convert(folder, "float32", tmp_path / "linked", verify="none")


def test_a_folder_with_an_at_in_its_name(folder: Path) -> None:
    other = folder.rename(folder.parent / "my@model")
    checkpoint = open_checkpoint(other)
    assert checkpoint.name == "my@model"
    assert metadata_of(checkpoint)["general.name"][0] == "My@Model"


#: every kind of entry that a card may have
FRONT = {
    "license": ["mit"], "license_name": "n", "license_link": "l", "language": ["en"], "tags": ["a"],
    "pipeline_tag": "b",
    "name": "c", "version": "1.0", "model_name": "d", "model_creator": "e", "basename": "f-7b1",
    "size_label": "7B",
    "base_model": ["org/x-7B", {"name": "y", "repo_url": "z"}], "datasets": ["https://huggingface.co/org/x",
    {"name": "y"}],
}  # fmt: skip


def cards() -> Iterator[tuple[str, bytes]]:
    strange = (
        None,
        -1,
        1e308,
        "x",
        [],
        {},
        True,
        10**30,
        "",
        "-",
        "/",
        "a/",
        "7b1",
        "x" * 5000,
        "\x1b[31m",
        [None],
        [[]],
        [{}],
        ["-"],
    )
    for label, front in mutations(FRONT, strange):
        yield label, f"---\n{yaml.safe_dump(front)}---\n# x\n".encode()
    yield from damaged(f"---\n{yaml.safe_dump(FRONT)}---\n# x\n".encode(), 400)


def reading(folder: Path) -> Callable[[bytes], object]:
    checkpoint = open_checkpoint(folder)

    def attempt(raw: bytes) -> object:
        (folder / "README.md").write_bytes(raw)
        metadata = load_metadata(checkpoint, [("a", (2, 2_100_000))])
        kvs = general_kvs(metadata, "llama", quantized_by=None)
        return file_name(metadata, FILE_TYPES["q8_0"]), [
            pack_value(name, *value) for name, value in kvs.items()
        ]

    attempt(f"---\n{yaml.safe_dump(FRONT)}---\n".encode())
    return attempt


def test_cards_changed_in_one_place(folder: Path) -> None:
    assert faults(reading(folder), sample(cards(), 300), seconds=10) == []


@pytest.mark.long
def test_every_change_of_a_card(folder: Path) -> None:
    assert faults(reading(folder), cards(), seconds=10) == []


def test_names_that_no_file_can_have(folder: Path) -> None:
    for head, start in (("name: " + "ü" * 400, "ü" * 80), ("name: ...", "4.2M"), ("name: ../../x", "x")):
        write(folder, head)
        metadata = load_metadata(open_checkpoint(folder), [("a", (2, 2_100_000))])
        name = file_name(metadata, FILE_TYPES["q8_0"])
        assert name.startswith(start)
        assert name.endswith("Q8_0.gguf")
        assert "/" not in name
        assert len(name.encode()) < MAX_STEM_CHARACTERS + 20
        assert general_kvs(metadata, "llama", quantized_by=None)["general.name"][0] == head.removeprefix(
            "name: "
        )
