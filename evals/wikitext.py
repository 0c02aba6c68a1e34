"""WikiText's raw files as the tools that measure on them read them."""

import re


def is_wikitext(text: str) -> bool:
    """Whether a text has the form of WikiText's raw files: blank lines of one space, headings `` = Title =
    ``."""
    return re.match(r" ?\n = [^=\n][^\n]* = \n", text) is not None


def wikitext_rows(text: str) -> list[str]:
    """The lines of a raw WikiText file as the rows of the Hugging Face dataset: blank lines empty, others
    with their newline."""
    return ["" if not line.strip() else line + "\n" for line in text.removesuffix("\n").split("\n")]


def wikitext_pages(text: str) -> list[str]:
    """A raw WikiText file as documents, split at level-one headings; any other text is one document.

    Source: the loading script of EleutherAI/wikitext_document_level.
    """
    pages: list[str] = []
    lines: list[str] = []
    for line in text.split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            if "".join(lines).strip():
                pages.append("\n".join(lines))
            lines = []
        lines.append(line)
    pages.append("\n".join(lines))
    return [page for page in pages if page.strip()]


def detokenize_wikitext(page: str) -> str:
    """WikiText's spaced-out punctuation put back. Source: lm_eval/tasks/wikitext/preprocess_wikitext.py."""
    for old, new in (("s '", "s'"),):
        page = page.replace(old, new)
    page = re.sub(r"/' [0-9]/", r"/'[0-9]/", page)
    for old in ("-", ",", "."):
        page = page.replace(f" @{old}@ ", old)
    for mark in ":;.!?,":
        page = page.replace(f" {mark} ", f"{mark} ")
    for left, right, inner in (
        (r"\(", r"\)", r"\)"),
        (r"\[", r"\]", r"\]"),
        ("{", "}", "}"),
        ('"', '"', '"'),
        ("'", "'", "'"),
    ):
        pattern = rf"{left}\s*([^{inner}]*?)\s*{right}"
        page = re.sub(pattern, lambda m, a=left[-1], b=right[-1]: f"{a}{m[1]}{b}", page)  # type: ignore[misc]
    for old, new in (
        ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
        (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"),
    ):  # fmt: skip
        page = page.replace(old, new)
    return page
