"""One artifact, opened, answering conversations token by token."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evals.special import of_gguf, of_source
from quantize.chat.render import Message
from quantize.chat.templates import ChatTemplate, folder_template
from quantize.checkpoint.templates import DEFAULT, folder_templates
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import StepFailed
from quantize.gguf.container.files import find_gguf
from quantize.gguf.container.reader import read_gguf
from quantize.gguf.tokenizer.chat_templates import gguf_template, templates_of
from quantize.process import peak_rss_bytes
from quantize.recipe import RunOptions
from quantize.runtimes.base import Runtime
from quantize.runtimes.opening import open_runtime

UNFINISHED = "\ufffd"  # of bytes that are not a character yet


@dataclass(frozen=True)
class Settings:
    """``temperature`` 0: always the likeliest token."""

    tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


class Chat:
    """Errors: those of opening it."""

    def __init__(self, folder: Path, run: RunOptions):
        gguf = find_gguf(folder)
        self.template: ChatTemplate | None = None
        if gguf is not None:
            if DEFAULT in templates_of(read_gguf(gguf).kvs):
                self.template = gguf_template(gguf)
            self.ends = of_gguf(gguf).ends
        else:
            if DEFAULT in folder_templates(folder):
                self.template = folder_template(folder)
            self.ends = of_source(SourceTokenizer.open(folder), [folder]).ends
        self.runtime: Runtime = open_runtime(folder, run, own_process=False)

    def answer(self, messages: Sequence[Message], settings: Settings) -> Iterator[Mapping[str, Any]]:
        """``{"text": piece}`` as they come, then ``{"done": why, "tokens", "tokens_per_s", "ttft_ms",
        "memory_bytes"}``: tokens after the first by the time that they took.

        Errors: BadInput where the template refuses, or the conversation fills the context.
        """
        ids = self.ids(messages)
        room = self.runtime.context - len(ids)
        if room < 1:
            raise StepFailed(
                f"the conversation has {len(ids)} tokens and the model's context "
                f"{self.runtime.context}; clear it"
            )
        random = np.random.default_rng(settings.seed)
        begun = time.perf_counter()
        made: list[int] = []
        shown, why = "", "length"
        logits = self.runtime.start(ids)
        first = time.perf_counter()
        while len(made) < min(settings.tokens, room):
            token = pick(logits, settings.temperature, random)
            if token in self.ends:
                why = "end"
                break
            made.append(token)
            text = self.runtime.detokenize(made)
            if len(text) > len(shown) and not text.endswith(UNFINISHED):
                yield {"text": text[len(shown) :]}
                shown = text
            if len(made) < min(settings.tokens, room):
                logits = self.runtime.step(token)
        passed = time.perf_counter() - first
        yield {
            "done": why,
            "tokens": len(made),
            "tokens_per_s": (len(made) - 1) / passed if len(made) > 1 and passed > 0 else None,
            "ttft_ms": (first - begun) * 1000,
            "memory_bytes": peak_rss_bytes(),
        }

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """By the model's chat template; where it has none, what was said as a text to go on with."""
        if self.template is not None:
            return self.runtime.tokenize(self.template.render(messages, add_generation_prompt=True), False)
        return self.runtime.tokenize("\n".join(str(message["content"]) for message in messages))


def pick(logits: np.ndarray, temperature: float, random: np.random.Generator) -> int:
    """``logits``: (vocabulary,) float32. A token by softmax(logits / temperature); the likeliest at 0.

    Errors: StepFailed where they are not numbers.
    """
    top = logits.max()
    if not np.isfinite(top):
        raise StepFailed("the model's logits are not finite")
    if temperature <= 0:
        return int(logits.argmax())
    weights = np.exp((logits.astype(np.float64) - top) / temperature)
    return int(random.choice(len(weights), p=weights / weights.sum()))
