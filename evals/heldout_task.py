"""The demo's task: choose the true continuation among four, made from any text, the same for the same
text."""

import hashlib
import random
import re
from pathlib import Path
from typing import Any

from evals.local_task import LocalTask
from quantize.calibration.texts import held_out_text
from quantize.errors import BadInput

ITEMS = 200
CONTEXT_WORDS = 32
CHOICE_WORDS = 12
CHOICES = 4
NAME = "heldout"


def make_items(text: str, items: int = ITEMS) -> list[dict[str, Any]]:
    """Items of ``CONTEXT_WORDS`` words, the ``CHOICE_WORDS`` that follow, and three passages of as many words
    from elsewhere.

    Errors: BadInput where the text has fewer than four passages."""
    words = re.findall(r"\S+", text)
    span = CONTEXT_WORDS + CHOICE_WORDS
    passages = len(words) // span
    if passages < CHOICES:
        raise BadInput(
            f"the text has {passages} passages of {span} words; "
            f"a task needs at least {CHOICES}: use a longer text"
        )
    rng = random.Random(int(hashlib.sha256(text.encode()).hexdigest()[:16], 16))
    chosen = sorted(rng.sample(range(passages), min(items, passages)))

    def part(passage: int) -> tuple[str, str]:
        start = passage * span
        return " ".join(words[start : start + CONTEXT_WORDS]), " ".join(
            words[start + CONTEXT_WORDS : start + span]
        )

    out = []
    for passage in chosen:
        query, truth = part(passage)
        choices = [truth]
        while len(choices) < CHOICES:
            other = part(rng.randrange(passages))[1]
            if other not in choices:
                choices.append(other)
            elif passages < 2 * CHOICES:
                choices.append(f"{other} {len(choices)}")
        rng.shuffle(choices)
        out.append({"query": query, "choices": choices, "gold": choices.index(truth)})
    return out


def held_out_task() -> LocalTask:
    """The task of the demo's held-out text."""
    return LocalTask(NAME, Path(f"{NAME}.jsonl"), "choices", tuple(make_items(held_out_text())))
