"""Texts kept in the user's cache."""

from pathlib import Path

import pytest

from quantize.calibration.kept import kept_text, samples_files


def test_a_text_is_made_once_and_again_where_its_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[int] = []

    def make() -> str:
        made.append(1)
        return "ä text\n" * 9

    assert [kept_text({"a": 1}, make) for _ in range(2)] == ["ä text\n" * 9] * 2
    assert len(made) == 1
    (kept,) = samples_files()
    kept.write_bytes(kept.read_bytes()[:-3])
    assert kept_text({"a": 1}, make) == "ä text\n" * 9
    kept_text({"a": 2}, make)
    assert len(made) == 3
    assert len(samples_files()) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quantwright").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept_text({"a": 1}, lambda: "text") == "text"
