"""Perplexity protocols by name: text -> token ids -> windows, and which positions of each window are scored.

A name is a family and its sizes, so that a changed window is never called by the unchanged name:
``llamacpp-512``, ``gptq-2048``, ``strided-2048-512`` (window, stride), ``exl3-2048``, ``lmeval-wikitext``
(window: the model's context) or ``lmeval-wikitext-1024``. What each family does, read from the tool's own
source:

- ``llamacpp`` (llama-perplexity): one newline at the end of the text dropped; the whole text tokenized once
  with special tokens; disjoint chunks of n tokens, the rest dropped, at least two wanted; where the
  vocabulary adds a BOS, it overwrites the first token of every chunk; logits n/2 .. n-2 scored.
- ``gptq`` (IST-DASLab/gptq llama.py): special tokens once at the start of the text; disjoint windows, rest
  dropped; every token but the first of a window scored.
- ``strided`` (the sliding window of transformers' documentation): windows start every stride tokens, each
  token is scored once, in the first window that holds it. (That page's loop weights a window's mean by one
  token too few; here every token weighs the same.)
- ``exl3`` (exllamav3 eval/ppl.py): no special tokens, at most 100 disjoint rows, all scored but the first
  token of each.
- ``lmeval-wikitext`` (lm-eval's wikitext task): one request a document, detokenized; a prefix token (BOS or
  EOS), then disjoint windows conditioned on the token before (the last one on as many as fit); all tokens
  scored; per word, per byte of the original document.
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from quantize.errors import BadInput

PROTOCOL_VERSION = 1
DEFAULT_PROTOCOLS = ("llamacpp-512", "gptq-2048", "lmeval-wikitext", "strided-2048-512", "exl3-2048")
EXL3_ROWS = 100
SHORTEST_WINDOW = 4
LONGEST_DOCUMENT_WINDOW = 8192
SPREAD_SHARE = 80
SPREAD_TOKENS = 4096

Say = Callable[[str], None]


class Tokenize(Protocol):
    def __call__(self, text: str, add_special: bool = True) -> list[int]: ...


@dataclass(frozen=True)
class TextProtocol:
    """``window`` tokens go through the model at once (0: the model's context); ``stride`` is what a window
    adds."""

    family: str
    window: int
    stride: int
    requested: str  # as typed

    @property
    def name(self) -> str:
        if self.family == "lmeval-wikitext":
            return self.family if self.requested == self.family else f"{self.family}-{self.window}"
        return f"{self.family}-{self.window}" + (f"-{self.stride}" if self.family == "strided" else "")

    def fit(self, context: int, say: Say) -> "TextProtocol":
        """The protocol with a window the model can take, said out loud where that changes it. ``context``:
        tokens, 0 unknown."""
        if self.family == "lmeval-wikitext" and not self.window:
            window = min(context or LONGEST_DOCUMENT_WINDOW, LONGEST_DOCUMENT_WINDOW)
            if context > window:
                say(
                    f"{self.name}: windows of {window} tokens; the model's "
                    f"context of {context} would take too much memory"
                )
            return TextProtocol(self.family, window, window, self.requested)
        if not context or self.window <= context:
            return self
        if context < SHORTEST_WINDOW:
            raise BadInput(
                f"protocol {self.requested}: needs windows of "
                f"{self.window} tokens, the model's context is {context}"
            )
        stride = max(1, self.stride * context // self.window)
        fitted = TextProtocol(self.family, context, stride, self.requested)
        say(
            f"the model's context is {context} tokens, shorter than the {self.window} of {self.requested}: "
            f"measuring {fitted.name} instead, whose numbers compare only with other {fitted.name} numbers"
        )
        return fitted

    @property
    def parameters(self) -> dict[str, Any]:
        return {"window": self.window, "stride": self.stride, "requested": self.requested}


@dataclass(frozen=True)
class Window:
    """``tokens``: (inputs + 1,) int64, the last one only a target. Logits of inputs ``first``.. are
    scored."""

    tokens: np.ndarray
    first: int
    document: int = 0

    @property
    def scored(self) -> int:
        return len(self.tokens) - 1 - self.first


@dataclass(frozen=True)
class Windows:
    """What is run through every model: equal windows give comparable numbers."""

    protocol: TextProtocol
    windows: tuple[Window, ...]
    ids: str  # "source" or "runtime"
    text_sha256: str
    text_bytes: int
    text_tokens: int  # of those used
    whole_tokens: int  # of the whole text
    documents: tuple[
        tuple[int, int], ...
    ] = ()  # (words, bytes) of each original document, for lmeval-wikitext
    bos: int | None = None
    remarks: tuple[str, ...] = field(default=())

    @property
    def scored(self) -> int:
        return sum(w.scored for w in self.windows)

    @property
    def offsets(self) -> np.ndarray:
        """(windows + 1,) int64: where each window's scored tokens begin in a flat array of all."""
        return np.concatenate([[0], np.cumsum([w.scored for w in self.windows])]).astype(np.int64)

    @property
    def ids_sha256(self) -> str:
        """Hash of every token id and scored position, so that equal hashes mean the same measurement."""
        digest = hashlib.sha256()
        for window in self.windows:
            digest.update(
                np.array([len(window.tokens), window.first], "<i8").tobytes()
                + window.tokens.astype("<i8").tobytes()
            )
        return digest.hexdigest()

    def groups(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Windows of one shape together: (their indices, rows (n, inputs) int64, first scored position)."""
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, window in enumerate(self.windows):
            shapes.setdefault((len(window.tokens) - 1, window.first), []).append(index)
        for (_, first), members in shapes.items():
            yield np.array(members), np.stack([self.windows[i].tokens[:-1] for i in members]), first

    def spread(self) -> np.ndarray:
        """Ascending indices of one window in ``SPREAD_SHARE``, for a measurement that need not be long: at
        least two, more only as long as they hold at most ``SPREAD_TOKENS`` scored tokens. Evenly over the
        text: neighbours are alike, and a beginning is not the rest."""
        count = len(self.windows)
        fitting = SPREAD_TOKENS * count // max(1, self.scored)
        wanted = min(count, max(2, min(-(-count // SPREAD_SHARE), fitting)))
        return (np.arange(wanted) * 2 + 1) * count // (2 * wanted)

    def only(self, indices: np.ndarray) -> "Windows":
        return replace(self, windows=tuple(self.windows[i] for i in indices))


def parse_protocol(name: str) -> TextProtocol:
    """Errors: BadInput with the nearest known name."""
    match = re.fullmatch(r"(llamacpp|gptq|exl3|strided|lmeval-wikitext)((?:-\d+)*)", name.strip().lower())
    sizes = [int(size) for size in match[2].split("-")[1:]] if match else []
    family = match[1] if match else ""
    allowed = {"llamacpp": (1,), "gptq": (1,), "exl3": (1,), "strided": (2,), "lmeval-wikitext": (0, 1)}.get(
        family, ()
    )
    if len(sizes) not in allowed:
        close = difflib.get_close_matches(name.lower(), DEFAULT_PROTOCOLS, n=1, cutoff=0.4)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise BadInput(
            f"unknown protocol {name!r}{hint}; known: "
            f"{', '.join(DEFAULT_PROTOCOLS)}, or the same with other sizes"
        )
    window = sizes[0] if sizes else 0
    stride = sizes[1] if len(sizes) > 1 else window
    if sizes and (window < SHORTEST_WINDOW or not 1 <= stride <= window):
        raise BadInput(
            f"protocol {name}: windows must have at least {SHORTEST_WINDOW} "
            "tokens and a stride from 1 to the window size"
        )
    return TextProtocol(family, window, stride, name.strip().lower())


def bos_of(tokenize: Tokenize) -> int | None:
    """The id that a tokenizer puts first of its own accord, or None."""
    with_special, without = tokenize("a"), tokenize("a", add_special=False)
    return with_special[0] if len(with_special) > len(without) and with_special[0] != without[0] else None


def make_windows(
    protocol: TextProtocol,
    text: str,
    tokenize: Tokenize,
    *,
    ids: str,
    prefix: int | None = None,
    tokens: int | None = None,
) -> Windows:
    """``protocol`` must have been fitted. ``prefix``: token that begins a document (lm-eval: BOS, else EOS),
    where it is another than the tokenizer adds. ``tokens``: only so many of the text's tokens.

    Errors: BadInput where the text is empty or too short for the protocol.
    """
    if not text.strip():
        raise BadInput("the text to evaluate is empty; give a text file with some text")
    bos = bos_of(tokenize)
    remarks: list[str] = []
    documents: tuple[tuple[int, int], ...] = ()
    if protocol.family == "lmeval-wikitext":
        pages = wikitext_pages(text)
        prefix_id = prefix if prefix is not None else bos
        if prefix_id is None:
            raise BadInput(
                f"protocol {protocol.name}: the tokenizer has neither "
                "a BOS nor an EOS token to begin a document with"
            )
        windows: list[Window] = []
        used: list[tuple[int, int]] = []
        total = 0
        for page in pages:
            ids_of_page = tokenize(detokenize_wikitext(page))
            if tokens is not None and total + len(ids_of_page) > tokens:
                ids_of_page = ids_of_page[: tokens - total]
            if not ids_of_page:
                break
            windows += _document_windows(ids_of_page, prefix_id, protocol.window, len(used))
            used.append((len(re.split(r"\s+", page)), len(page.encode())))
            total += len(ids_of_page)
        documents, whole = tuple(used), total
        if tokens is not None and total == tokens:
            documents = ()  # the last document may be cut: no count of its words or bytes
    else:
        if protocol.family == "llamacpp":
            body = text.removesuffix("\n")
        elif is_wikitext(text):
            body = "\n\n".join(wikitext_rows(text))
            remarks.append(
                "raw WikiText is read as the rows of the Hugging "
                "Face dataset joined by blank lines, as in this tool"
            )
        else:
            body = text
        stream = np.asarray(tokenize(body, add_special=protocol.family != "exl3"), np.int64)
        whole = len(stream)
        stream = stream[:tokens]
        total = len(stream)
        windows = _stream_windows(protocol, stream, bos)
    return Windows(
        protocol=protocol,
        windows=tuple(windows),
        ids=ids,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        text_bytes=len(text.encode()),
        text_tokens=total,
        whole_tokens=whole,
        documents=documents,
        bos=bos,
        remarks=tuple(remarks),
    )


def _stream_windows(protocol: TextProtocol, stream: np.ndarray, bos: int | None) -> list[Window]:
    n = protocol.window
    if protocol.family == "strided":
        return _strided_windows(stream, n, protocol.stride)
    count = len(stream) // n
    needed = 2 if protocol.family == "llamacpp" else 1
    if count < needed:
        raise BadInput(
            f"protocol {protocol.name}: needs a text of at least {needed * n} "
            f"tokens, but this one has {len(stream)}; use a longer text, or smaller "
            f"windows ({protocol.family}-{max(SHORTEST_WINDOW, len(stream) // 4)})"
        )
    rows: np.ndarray = stream[: count * n].reshape(count, n).copy()
    if protocol.family == "exl3":
        rows = rows[:EXL3_ROWS]
    if protocol.family == "llamacpp" and bos is not None:
        rows[:, 0] = bos
    first = n // 2 if protocol.family == "llamacpp" else 0
    return [Window(row, first) for row in rows]


def _strided_windows(stream: np.ndarray, window: int, stride: int) -> list[Window]:
    if len(stream) < 2:
        raise BadInput(
            f"protocol strided-{window}-{stride}: needs a text of "
            f"at least 2 tokens, but this one has {len(stream)}"
        )
    windows, scored_until = [], 1  # token 0 has no context
    for begin in range(0, len(stream), stride):
        end = min(begin + window, len(stream))
        if end > scored_until:
            windows.append(Window(stream[begin:end], scored_until - begin - 1))
            scored_until = end
        if end == len(stream):
            break
    return windows


def _document_windows(tokens: list[int], prefix: int, length: int, document: int) -> list[Window]:
    """lm_eval.utils.get_rolling_token_windows with context_len 1, made disjoint."""
    stream = np.array([prefix, *tokens], np.int64)  # inputs are stream[:-1], targets stream[1:]
    windows = [Window(stream[: min(length, len(tokens)) + 1], 0, document)]
    predicted = min(length, len(tokens))
    while predicted < len(tokens):
        count = min(len(tokens) - predicted, length)
        end = predicted + count
        # ``length`` inputs that end one before the last target; only the last ``count`` are scored.
        begin = max(0, end - length)
        windows.append(Window(stream[begin : end + 1], length - count, document))
        predicted = end
    return windows


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
