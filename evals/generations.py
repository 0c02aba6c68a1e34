"""Greedy continuations of the same prompts by every artifact, for the report to show side by side."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evals.rows import Heading
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.documents import LINES_OF_JSON, read_document
from quantize.errors import BadInput
from quantize.files import parse_json
from quantize.results import EvalResult
from quantize.runtimes.base import Runtime

TOKENS = 64
FROM_TEXT = 3
WORDS = 24  # of a prompt that is cut from a text
CHARACTERS = 48  # of one whose script puts no spaces between words
#: Thai, Lao, Burmese, Khmer, Japanese, Chinese
UNSPACED = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)


def read_prompts(path: Path) -> list[str]:
    """One prompt per line; of a ``.jsonl`` the ``prompt`` of each object, which may have several lines.

    Errors: BadInput naming the line.
    """
    found = []
    for number, line in enumerate(read_document(path).lines, 1):
        if not line.strip():
            continue
        if path.suffix not in LINES_OF_JSON:
            found.append(line)
            continue
        item = parse_json(line.encode(), f"{path}:{number}", hint="expected an object with a prompt")
        if not isinstance(item, dict) or not isinstance(item.get("prompt"), str) or not item["prompt"]:
            raise BadInput(f'{path}:{number}: expected {{"prompt": "..."}}')
        found.append(item["prompt"])
    if len(set(found)) < len(found):
        raise BadInput(f"{path}: a prompt is listed twice; list it once")
    return found


def prompts_from(text: str) -> list[str]:
    """The beginnings of three parts of equal length of ``text``. Errors: BadInput where it is too short."""
    words = text.split()
    units, length, between, name = words, WORDS, " ", "words"
    if 4 * len(UNSPACED.findall(text)) > sum(map(len, words)):
        units, length, between, name = list(between.join(words)), CHARACTERS, "", "characters"
    if len(units) < 2 * FROM_TEXT * length:
        raise BadInput(
            f"the text has {len(units)} {name}, too few for "
            f"{FROM_TEXT} prompts of {length}; give --prompts FILE"
        )
    starts = [i * len(units) // FROM_TEXT for i in range(FROM_TEXT)]
    return [between.join(units[start : start + length]) for start in starts]


def generation_items(
    runtime: Runtime,
    prompts: Sequence[str],
    tokens: int,
    source: SourceTokenizer | None,
    ends: frozenset[int],
) -> list[dict[str, Any]]:
    """Each prompt with the text and ids of its continuation, which ends after ``tokens``, before one of
    ``ends``, or where the logits are not finite (``"ended"``)."""
    items: list[dict[str, Any]] = []
    decode = source.decode if source else runtime.detokenize
    for prompt in prompts:
        ids = (source.encode if source else runtime.tokenize)(prompt)
        room = runtime.context - len(ids)
        if room < 1:
            raise BadInput(
                f"a prompt of {len(ids)} tokens leaves no room in the "
                f"model's context of {runtime.context}: shorten it"
            )
        made, ended = _continue(runtime, ids, min(tokens, room), ends)
        items.append({"prompt": prompt, "text": decode(made) if made else "", "ids": made, "ended": ended})
    return items


def generation_row(items: list[dict[str, Any]], tokens: int, ids: str, heading: Heading) -> EvalResult:
    """A result of metric ``generations``, the items in its ``detail``."""
    row = EvalResult(
        heading.artifact, "generations", f"greedy-{tokens}", None, backend=heading.backend, role=heading.role
    )
    return replace(
        row,
        n=len(items),
        ids=ids,
        artifact_digest=heading.digest,
        protocol_parameters={"tokens": tokens},
        environment=heading.environment,
        detail={"items": items},
    )


def _continue(
    runtime: Runtime, ids: Sequence[int], tokens: int, ends: frozenset[int]
) -> tuple[list[int], str]:
    made: list[int] = []
    if runtime.by_scores:
        made = runtime.generate(ids, tokens)
        end = next((i for i, token in enumerate(made) if token in ends), None)
        return (made, "length") if end is None else (made[:end], "end of text")
    logits = runtime.start(ids)
    while not np.isnan(logits.max()):
        token = int(logits.argmax())
        if token in ends:
            return made, "end of text"
        made.append(token)
        if len(made) == tokens:
            return made, "length"
        logits = runtime.step(token)
    return made, "not finite"
