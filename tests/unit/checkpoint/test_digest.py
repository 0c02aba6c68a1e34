"""The digest of a checkpoint, beside other work or not."""

from pathlib import Path

import pytest

from quantize.checkpoint.checkpoint import Checkpoint


def test_begun_or_not_it_is_the_same(demo_checkpoint: Path) -> None:
    asked, begun = Checkpoint.open(demo_checkpoint), Checkpoint.open(demo_checkpoint)
    begun.begin_digest()
    begun.begin_digest()
    assert begun.digest == begun.digest == asked.digest
    assert len(asked.digest) == 64


def test_what_cannot_be_read_is_said_to_who_asks(
    demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint.open(demo_checkpoint)
    missing = [("model.safetensors", demo_checkpoint / "gone.safetensors")]
    monkeypatch.setattr(Checkpoint, "contents", lambda self: missing)
    checkpoint.begin_digest()
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        _ = checkpoint.digest
