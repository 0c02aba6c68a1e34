"""A text as windows of token ids: what every model is run on, and which positions of it are scored."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from evals.protocols import SHORTEST_WINDOW, TextProtocol
from evals.wikitext import detokenize_wikitext, is_wikitext, wikitext_pages, wikitext_rows
from quantize.errors import BadInput

EXL3_ROWS = 100

SPREAD_SHARE = 80

SPREAD_TOKENS = 4096


class Tokenize(Protocol):
    def __call__(self, text: str, add_special: bool = True) -> list[int]: ...


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
    """What runs through every model: equal windows make comparable numbers."""

    protocol: TextProtocol
    windows: tuple[Window, ...]
    ids: str  # "source" or "runtime"
    text_sha256: str
    text_bytes: int
    text_tokens: int  # of those used
    whole_tokens: int  # of the whole text
    # (words, bytes) of each original document, for lmeval-wikitext
    documents: tuple[tuple[int, int], ...] = ()
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


def bos_of(tokenize: Tokenize) -> int | None:
    """The id that a tokenizer puts first by itself, or None."""
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
