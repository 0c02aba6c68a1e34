"""Sizes and times, typed and read; the first line of an error; bars."""

import io

import pytest

from quantize.errors import BadInput, first_line, one_line
from quantize.progress import progress_bar
from quantize.units import parse_size, spell_gib, spell_size, spell_time


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("500MB", 5 * 10**8),
        ("1g", 10**9),
        (" 1.5 KiB ", 1536),
        ("123", 123),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_parsed(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "8 boxes", "1e999", "-", "GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="expected something like 8GiB"):
        parse_size(text)


def test_sizes_and_times_are_spelled() -> None:
    sizes = [0, 999, 1500, 99_940_000, 502e6, 999.6e6, 12.3e9, 3.2e12, 4e15]
    assert [spell_size(size) for size in sizes] == [
        "0 B", "999 B", "1.50 kB", "99.94 MB", "502.0 MB", "1.00 GB", "12.30 GB", "3.20 TB", "4000.0 TB"
    ]  # fmt: skip
    assert spell_gib(8 << 30) == "8.00 GiB"
    times = [0.04, 9.94, 9.96, 89.6, 90, 5399, 5400]
    assert [spell_time(time) for time in times] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "90 s",
        "1.5 min",
        "90.0 min",
        "1.5 h",
    ]


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("  one\ntwo")) == "one"
    assert first_line(ValueError("")) == "ValueError"
    assert (one_line(KeyError()), one_line(ValueError("x\ny"))) == ("KeyError", "ValueError: x")
    assert len(first_line(ValueError("x" * 9999))) == 400


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "wanted", "drawn"), [
    (Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False),
])  # fmt: skip
def test_bars_are_drawn_on_terminals_alone(
    stream: io.StringIO, wanted: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("model [x]", 12_345, "weights", wanted, stream) as advance:
        advance(12_345)
    assert ("12,345/12,345 weights" in stream.getvalue()) is drawn
    assert ("model [x]" in stream.getvalue()) is drawn
