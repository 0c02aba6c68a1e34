"""Token ids kept on disk are those of the tokenizer, or are made again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evals.saved_ids import LEAST_CHARACTERS, SavedIds
from quantize.checkpoint.tokenizer import SourceTokenizer

TEXT = "the quick brown fox jumps over the lazy dog. " * (LEAST_CHARACTERS // 40)


@pytest.fixture
def tokenizer(demo_checkpoint: Path) -> SourceTokenizer:
    return SourceTokenizer.open(demo_checkpoint)


def saved(root: Path) -> list[Path]:
    return sorted(root.glob("tokens-*/ids.i32"))


def test_read_where_known_and_made_where_not(
    tokenizer: SourceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = tokenizer.encode(TEXT)
    assert SavedIds(tokenizer, tmp_path)(TEXT) == want
    (file,) = saved(tmp_path)
    monkeypatch.setattr(tokenizer, "encode", lambda *_: pytest.fail("tokenized again"))
    assert SavedIds(tokenizer, tmp_path)(TEXT) == want
    monkeypatch.undo()
    assert SavedIds(tokenizer, tmp_path)(TEXT, add_special=False) == tokenizer.encode(TEXT, add_special=False)
    assert len(saved(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert file in saved(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "no about"])
def test_damaged_ids_are_made_again(tokenizer: SourceTokenizer, tmp_path: Path, damage: str) -> None:
    want = SavedIds(tokenizer, tmp_path)(TEXT)
    (file,) = saved(tmp_path)
    good = file.read_bytes()
    if damage == "no about":
        (file.parent / "about.json").unlink()
    else:
        file.write_bytes(bytes([good[0] ^ 1]) + good[1:] if damage == "flip" else good[:-4])
    assert SavedIds(tokenizer, tmp_path)(TEXT) == want
    assert file.read_bytes() == good


def test_another_tokenizer_config_is_another_entry(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_checkpoint()
    SavedIds(SourceTokenizer.open(folder), tmp_path)(TEXT)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    SavedIds(SourceTokenizer.open(folder), tmp_path)(TEXT)
    assert len(saved(tmp_path)) == 2
