"""What is printed: one line, no escape sequences, no secrets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quantize.errors import BadInput, one_line
from quantize.terminal import console, printable, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\r\nand\ta tab", "two lines and a tab"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("half \ud800", r"half \ud800"),
        ("grüße, 你好, 😀", "grüße, 你好, 😀"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_printable_is_bounded() -> None:
    assert printable("x" * 10_000, 100) == "x" * 99 + "…"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    for text in (
        "the mirror says: Authorization: Bearer abcdefgh12345678",
        "echo a-token-of-no-known-form",
        "hf_abcdefghijklmnopqrstuvwx",
        "https://user:password1@mirror.example/path",
        "https://bucket.example/x?X-Amz-Signature=abcdef0123&expires=3",
    ):
        shown = redact(text)
        for secret in ("abcdefgh12345678", "no-known-form", "ghijkl", "password1", "abcdef0123"):
            assert secret not in shown, shown
    assert redact("https://huggingface.co/org/name?x=1 @ 3") == "https://huggingface.co/org/name?x=1 @ 3"


def test_tables_show_what_a_stranger_wrote_and_obey_none_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("name", "note", box=None)
    table.add_row("model\x1b]0;title\x07", "[red]not red[/red] [link=http://a.example]x[/link]")
    console().print(table)
    shown = capsys.readouterr().out
    assert r"model\x1b]0;title\x07" in shown
    assert "[red]not red[/red] [link=http://a.example]x[/link]" in shown
    assert "\x1b" not in shown


def test_an_error_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    assert str(BadInput("model\n\x1b[2Jtype: a-token-of-no-known-form")) == r"model \x1b[2Jtype: ***"
    assert (
        one_line(RuntimeError("first\x07 a-token-of-no-known-form\nsecond")) == r"RuntimeError: first\x07 ***"
    )


def run(*command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def test_a_foreign_config_value_stays_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["A\\n\\u001b[31mB"], "model_type": "hf_abcdefghijklmnopqrstuvwx"}'
    )
    done = run(
        sys.executable,
        "-m",
        "quantize.cli",
        "convert",
        str(tmp_path),
        "--to",
        "float32",
        "-o",
        str(tmp_path / "out"),
    )
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "hf_abcdefgh" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2  # what is being done, and why not


def test_an_output_that_is_closed_or_narrow() -> None:
    shell = f"{sys.executable} -m quantize.cli methods"
    assert "Traceback" not in run("sh", "-c", f"{shell} | head -c 1").stderr
    assert run("sh", "-c", f"{shell} >&- 2>&-").returncode == 0
    ascii_only = run("sh", "-c", f"{shell} --no-such-Grüße", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ascii_only.returncode == 2
    assert "Traceback" not in ascii_only.stderr


def test_library_logs_go_where_they_are_wanted(tmp_path: Path) -> None:
    code = (
        "from quantize.terminal import settle_output; settle_output(); import logging, sys;"
        "logging.getLogger('lib').warning('hf_abcdefghijklmnopqrstuvwx said'); print('done')"
    )
    assert run(sys.executable, "-c", code).stderr == ""
    log = tmp_path / "libraries.log"
    done = run(sys.executable, "-c", code, QUANTWRIGHT_LOG=str(log))
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert "lib WARNING *** said" in log.read_text()
