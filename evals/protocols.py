"""Perplexity protocols by name; ``evals.windows`` makes of a text what they say.

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
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quantize.errors import BadInput

PROTOCOL_VERSION = 1
DEFAULT_PROTOCOLS = ("llamacpp-512", "gptq-2048", "lmeval-wikitext", "strided-2048-512", "exl3-2048")
SHORTEST_WINDOW = 4
LONGEST_DOCUMENT_WINDOW = 8192

Say = Callable[[str], None]


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
        """The protocol with a window that fits the model; says so where that changes it. ``context``: tokens,
        0 unknown."""
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
