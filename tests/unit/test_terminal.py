"""What is printed: one line, no escape sequences, no secrets."""

import pytest

from quantize.terminal import printable, redact


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
