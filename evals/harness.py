"""A model class of lm-eval on our runtimes, so that one harness measures every format on the same token ids.

Requests that share their input (context and all but the last token of the continuation) are run once; inputs
are sorted by length and right-padded into batches, which a causal model does not notice. Source for what
counts as context, how it is truncated and the rolling windows: lm_eval/models/huggingface.py.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from evals.kernels import add_log_probs
from evals.row_groups import alike, batches
from evals.special import SpecialIds
from quantize.chat.render import TemplateRefuses
from quantize.chat.templates import ChatTemplate
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import Unsupported
from quantize.progress import Advance
from quantize.runtimes.base import Runtime

GROUPS_PER_CALL = 256  # so that the progress bar moves
MAX_GENERATED = 256  # lm-eval's own default

ROLLING = ("", "")  # replaces the pair of texts where only tokens are given

Request = tuple[tuple[str, str], list[int], list[int]]


class RuntimeLM(TemplateLM):
    """``source`` None: the runtime's own tokenizer."""

    def __init__(
        self,
        runtime: Runtime,
        source: SourceTokenizer | None,
        special: SpecialIds,
        *,
        advance: Callable[[str, int], Advance] | None = None,
        template: ChatTemplate | None = None,
    ):
        super().__init__()
        self.template = template
        self.runtime = runtime
        self.source = source
        self.special = special
        self.advance = advance or (lambda what, total: lambda n: None)
        #: what was done otherwise than the task says
        self.remarks: set[str] = set()
        #: (task, item) whose logits were not finite: the likelihood is zero, a generation ends there
        self.non_finite: set[tuple[str | None, int | None]] = set()
        #: (context, continuation) -> its ids, and the log-probability of each
        self.scored: dict[tuple[str, str], tuple[list[int], np.ndarray]] = {}

    @property
    def eot_token_id(self) -> int:
        ends = [self.special.eos, *sorted(self.special.stops)]
        if (found := next((end for end in ends if end is not None), None)) is None:
            raise Unsupported("the model's tokenizer has no end-of-text token, which lm-eval needs here")
        return found

    @property
    def prefix_token_id(self) -> int:
        return self.special.prefix if self.special.prefix is not None else self.eot_token_id

    @property
    def max_length(self) -> int:
        return self.runtime.context

    @property
    def max_gen_toks(self) -> int:
        return min(MAX_GENERATED, self.max_length // 2)

    @property
    def tokenizer_name(self) -> str:
        return self.source.sha256 if self.source else self.runtime.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        encode = self.source.encode if self.source else self.runtime.tokenize
        ids = encode(string, add_special=add_special_tokens is not False)
        if add_special_tokens is None and self._prefix_text and string.startswith(self._prefix_text):
            return encode(string, add_special=False)  # the text, a chat's most often, begins with its own BOS
        return ids

    @cached_property
    def _prefix_text(self) -> str:
        """ "" where there is no such token, or no tokenizer to spell it."""
        try:
            return "" if self.special.prefix is None else self._continuation([self.special.prefix])
        except Unsupported:
            return ""

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.template.text if self.template and chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        assert self.template is not None
        try:
            return self.template.render(
                chat_history, add_generation_prompt, open_end=not add_generation_prompt
            )
        except TemplateRefuses as error:
            left = [message for message in chat_history if message["role"] != "system"]
            if len(left) == len(chat_history):
                raise
            text = self.template.render(left, add_generation_prompt, open_end=not add_generation_prompt)
            self.remarks.add(
                "system messages, such as a task's description, were left "
                f"out; the chat template refuses them ({error.reason})"
            )
            return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        for request in requests:
            context, continuation = request.args
            if context and not context.strip():  # lm-eval asserts on a context of only white space
                request.arguments = ("", context + continuation)
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        self._note(
            [request for request, (value, _) in zip(requests, scores, strict=True) if value == -math.inf]
        )
        return scores

    def _note(self, requests: list[Instance]) -> None:
        self.non_finite |= {(request.task_name, request.doc_id) for request in requests}

    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        greedy = np.ones(len(requests), bool)
        log_probs = (
            self._scored_by_runtime(requests, greedy)
            if self.runtime.by_scores
            else self._score(requests, greedy)
        )
        self.scored |= {
            r[0]: (r[2][-len(each) :], each)
            for r, each in zip(requests, log_probs, strict=True)
            if r[0] != ROLLING
        }
        sums = np.array([each.sum() for each in log_probs])
        finite = np.isfinite(sums)
        sums[~finite] = -np.inf
        return [(float(s), bool(g)) for s, g in zip(sums, greedy & finite, strict=True)]

    def _score(self, requests: list[Request], greedy: np.ndarray) -> list[np.ndarray]:
        """The log-probability of each token of each continuation; ``greedy`` is unset where greedy decoding
        picks another."""
        rows: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        log_probs = []
        for index, (_, context, continuation) in enumerate(requests):
            whole = (context + continuation)[-(self.max_length + 1) :]
            kept = continuation[-(len(whole) - 1) :]
            rows.setdefault(tuple(whole[:-1]), []).append((index, kept))
            log_probs.append(np.zeros(len(kept)))
        advance = self.advance("items", len(requests))

        def take(ids: tuple[int, ...], position: int, logits: np.ndarray) -> None:
            add_log_probs(len(ids), rows[ids], position, logits, log_probs, greedy)

        def first(ids: tuple[int, ...]) -> int:
            """The position from which logits are wanted."""
            return len(ids) - max(len(tokens) for _, tokens in rows[ids])

        if self.runtime.shares_beginnings:
            groups = alike(sorted(rows))
            for part in (groups[i : i + GROUPS_PER_CALL] for i in range(0, len(groups), GROUPS_PER_CALL)):

                def consume(
                    group: int, row: int, position: int, logits: np.ndarray, part: Any = part
                ) -> None:
                    take(part[group][row], position, logits)

                self.runtime.tree_logits(part, [[first(ids) for ids in group] for group in part], consume)
                advance(sum(len(rows[ids]) for group in part for ids in group))
        else:
            for batch in batches(sorted(rows, key=lambda ids: (-len(ids), ids))):
                padded = np.array(
                    [[*ids, *[ids[-1]] * (len(batch[0]) - len(ids))] for ids in batch], np.int64
                )

                def consume_row(row: int, position: int, logits: np.ndarray, batch: Any = batch) -> None:
                    take(batch[row], position, logits)

                self.runtime.logits(padded, min(first(ids) for ids in batch), consume_row)
                advance(sum(len(rows[ids]) for ids in batch))
        return log_probs

    def _scored_by_runtime(self, requests: list[Request], greedy: np.ndarray) -> list[np.ndarray]:
        advance = self.advance("items", len(requests))
        out: list[np.ndarray] = []
        for begin in range(0, len(requests), GROUPS_PER_CALL):
            part = requests[begin : begin + GROUPS_PER_CALL]
            wholes = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in part]
            firsts = [
                max(1, len(whole) - len(tokens)) for whole, (_, _, tokens) in zip(wholes, part, strict=True)
            ]
            for log_probs, ranks in self.runtime.token_scores(wholes, firsts):
                greedy[len(out)] = (ranks == 1).all()
                out.append(log_probs)
            advance(len(part))
        return out

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[Request] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            (text,) = request.args
            pairs = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, pairs):
                windows.append((ROLLING, context, continuation))
                owners.append(index)
        totals = np.zeros(len(requests))
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += value
        self._note([requests[index] for index in np.flatnonzero(totals == -np.inf)])
        return [float(total) for total in totals]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy. Errors: Unsupported where a task asks for sampling, or there is no tokenizer."""
        end = self._continuation([self.eot_token_id]) if self.special.ends else None
        advance = self.advance("generations", len(requests))
        out = []
        for request in requests:
            context, options = request.args
            settings = normalize_gen_kwargs(options, self.max_gen_toks)
            if settings.get("do_sample") or (settings.get("temperature") or 0) > 0:
                raise Unsupported(
                    "the task asks for sampling (do_sample, temperature), but generation here is greedy"
                )
            stops = [stop for stop in handle_stop_sequences(settings.get("until"), eos=end) if stop]
            limit = int(settings["max_gen_toks"])
            if limit >= self.max_length:
                self.remarks.add(
                    f"at most {self.max_length // 2} tokens are generated, "
                    f"not {limit}: the context is {self.max_length}"
                )
                limit = max(1, self.max_length // 2)
            ids = self.tok_encode(context)[-(self.max_length - limit) :]
            text, finite = self._generate(ids or [self.prefix_token_id], limit, stops)
            self._note([] if finite else [request])
            out.append(text)
            advance(1)
        return out

    def _generate(self, ids: Sequence[int], limit: int, stops: list[str]) -> tuple[str, bool]:
        """Greedy continuation up to a stop, and whether all logits were finite: it ends where they are
        not."""
        made: list[int] = []
        finite = True
        if self.runtime.by_scores:
            whole = self.runtime.generate(ids, limit)
            made = whole[
                : next((i + 1 for i, token in enumerate(whole) if token in self.special.ends), limit)
            ]
        else:
            logits = self.runtime.start(ids)
            while finite := not np.isnan(logits.max()):
                made.append(int(logits.argmax()))
                if made[-1] in self.special.ends or len(made) == limit:
                    break
                text = self._continuation(made)
                if any(stop in text for stop in stops):
                    break
                logits = self.runtime.step(made[-1])
        text = self._said(made)
        for stop in stops:
            text = text.split(stop)[0]
        return text, finite

    def _said(self, made: list[int]) -> str:
        """The text of ``made`` as lm-eval's HF class has it: without special tokens, which end it most
        often."""
        if self.source:
            return self.source.decode(made, skip_special=True)
        made = made[:-1] if made and made[-1] in self.special.ends else made
        return self._continuation(made) if made else ""

    def _continuation(self, made: list[int]) -> str:
        return self.source.decode(made) if self.source else self.runtime.detokenize(made)
