"""Windows of several texts: shares, seeds, what the manifest says of them, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from quantize.calibration.texts import calibration_text
from quantize.calibration.windows import Calibration, load_calibration
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import BadInput, StepFailed
from quantize.recipe import CalibrationOptions
from quantize.sources.opening import open_checkpoint


@pytest.fixture(scope="module")
def demo(demo_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(demo_checkpoint)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, words in (
        ("wiki", "The river rises in the hills and flows"),
        ("code", "def f(x):\n    return x"),
    ):
        (folder / f"{name}.txt").write_text(
            "\n".join(f"{words} {number}" for number in range(1000)), encoding="utf-8"
        )
    return folder


def load(checkpoint: Checkpoint, source: str, tokens: int = 640, seed: int = 0) -> Calibration:
    options = CalibrationOptions(source=source, tokens=tokens, sequence_length=32, seed=seed)
    return load_calibration(checkpoint, options)


def is_code(checkpoint: Checkpoint, rows: np.ndarray) -> np.ndarray:
    tokenizer = SourceTokenizer.open(checkpoint.folder)
    return np.array(["return" in tokenizer.decode(row.tolist()) for row in rows])


def test_a_mixture_has_the_shares_that_are_asked_for(demo: Checkpoint, texts: Path) -> None:
    source = f"{texts}/wiki.txt*0.75,{texts}/code.txt*0.25"
    found = load(demo, source)
    assert found.ids.shape == (20, 32)
    assert is_code(demo, found.ids).sum() == 5
    assert [(Path(part.source).name, part.tokens) for part in found.record.parts] == [
        ("wiki.txt", 480),
        ("code.txt", 160),
    ]
    assert found.record.source == source
    alone = load(demo, f"{texts}/wiki.txt", tokens=480)
    assert alone.record.parts == ()
    assert alone.record.sha256 == found.record.parts[0].sha256
    # what one text gives beside another is what it gives alone, in another order
    wiki = found.ids[~is_code(demo, found.ids)]
    assert {row.tobytes() for row in wiki} == {row.tobytes() for row in alone.ids}
    assert found.record.sha256 not in {part.sha256 for part in found.record.parts}


def test_seeds(demo: Checkpoint, texts: Path) -> None:
    source = f"{texts}/wiki.txt,{texts}/code.txt"
    first, again, other = (load(demo, source, seed=seed) for seed in (1, 1, 2))
    assert first.record == again.record
    assert first.record.ids_sha256 != other.record.ids_sha256
    assert first.record.sha256 == other.record.sha256
    kinds = is_code(demo, first.ids)
    assert kinds.sum() == 10
    assert np.flatnonzero(kinds[1:] != kinds[:-1]).size > 1  # shuffled, not one after the other


def test_weights_are_relative_and_every_window_is_given_out(demo: Checkpoint, texts: Path) -> None:
    found = load(demo, f"{texts}/wiki.txt*20,{texts}/code.txt*10,stdlib*11", tokens=352)
    assert [part.tokens // 32 for part in found.record.parts] == [5, 3, 3]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{0}/wiki.txt,{0}/missing.txt", "missing.txt: no such text file"),
        ("{0}/wiki.txt,{0}/missing", "missing: no such text file or folder"),
        ("{0}/wiki.txt*1000,{0}/code.txt", "the share of {0}/code.txt is less than one window of 20"),
        ("{0}/wiki.txt,nowhere", "'nowhere': neither a text file"),
        ("{0}/wiki.txt*much,{0}/code.txt", "weight 'much' is not a number"),
    ],
)
def test_mixtures_that_cannot_be(demo: Checkpoint, texts: Path, source: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        load(demo, source.format(texts))
    assert message.format(texts) in str(error.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "is empty"),
        ("A few words.", "tokens, fewer than the 640 asked for"),
        (" the" * 3000, "of its tokens are one token, "),
    ],
)
def test_texts_that_cannot_be(demo: Checkpoint, tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(body)
    with pytest.raises(BadInput) as error:
        load(demo, str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_part_that_is_too_short_is_named_with_its_share(
    demo: Checkpoint, texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("A few words.")
    with pytest.raises(BadInput, match=r"short\.txt: has \d+ tokens, fewer than the 320 asked for"):
        load(demo, f"{texts}/wiki.txt,{tmp_path}/short.txt")


def test_a_folder(demo: Checkpoint, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "more").mkdir(parents=True)
    (folder / "b.txt").write_bytes("Zweite, größer".encode("cp1252"))
    (folder / "a.md").write_text("First.")
    (folder / "more" / "c.jsonl").write_text(json.dumps({"text": "Third."}))
    (folder / "picture.png").write_bytes(bytes(range(256)))
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    found = calibration_text(str(folder), demo.folder)
    assert found.body == "First.\n\nZweite, größer\n\nThird."
    assert found.read_as.startswith("3 files; b.txt as Windows-1252")
    assert "without 1 files that are no text" in found.read_as
    (folder / "more" / "c.jsonl").write_text("{")
    with pytest.raises(BadInput, match=r"c\.jsonl:1"):
        calibration_text(str(folder), demo.folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no text file"):
        calibration_text(str(tmp_path / "empty"), demo.folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The Hub, which holds one dataset with two columns; what it is asked for."""
    asked: list[tuple[object, ...]] = []

    def load_dataset(name: str, config: str | None, split: str) -> Dataset:
        asked.append((name, config, split))
        if split == "validation":
            raise ValueError('Unknown split "validation"')
        talk = [{"role": "user", "content": "Why?"}]
        return Dataset.from_dict({"title": ["One", "Two"], "talk": [talk, talk], "number": [1, 2]})

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


def test_a_column_of_a_dataset(demo: Checkpoint, hub: list[tuple[object, ...]]) -> None:
    assert calibration_text("org/name:test:title", demo.folder).body == "One\n\nTwo"
    assert calibration_text("org/name:more:test:title", demo.folder).body == "One\n\nTwo"
    assert calibration_text("org/name::talk", demo.folder).body == "Why?\n\nWhy?"
    assert hub == [("org/name", None, "test"), ("org/name", "more", "test"), ("org/name", None, "train")]


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ("org/name:test:body", BadInput, "has no column 'body', only title, talk, number"),
        ("org/name:test:number", BadInput, "row 0: column 'number' holds int, not texts"),
        ("org/name:config", BadInput, "row 0: is an object with title, talk, number"),
        ("org/name:validation:title", StepFailed, "Unknown split"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_datasets_that_cannot_be(demo: Checkpoint, place: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as error:
        calibration_text(place, demo.folder)
    assert message in str(error.value)
    assert place in str(error.value)
