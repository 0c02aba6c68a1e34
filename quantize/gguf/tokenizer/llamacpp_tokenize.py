"""What llama.cpp's tokenizer produces for a correct file, reimplemented in Python: separates its limits from
our faults.

Where llama.cpp's ids differ from the source's but equal these, no other file would fix it. Not fast: it is
run on the texts that differ.

Source: llama.cpp src/llama-vocab.cpp (``tokenizer_st_partition``, ``llm_tokenizer_spm_session``,
``llm_tokenizer_bpe_session``, the overrides of token types in ``load``).
"""

import heapq
import math

from gguf import TokenType

from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.gguf.tokenizer.llamacpp_split import split
from quantize.gguf.tokenizer.pre import to_bytes
from quantize.gguf.tokenizer.pretokenizers import BY_NAME
from quantize.gguf.tokenizer.special import BY_TEXT
from quantize.gguf.tokenizer.vocabulary import SPACE, Vocabulary

# Texts that llama.cpp makes CONTROL (the last four USER_DEFINED) whatever type the file gives them.
OVERRIDDEN = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>",
    "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>",
    "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "<|channel|>", "<|message|>", "<|start|>",
    "<|constrain|>",
})  # fmt: skip
_PARSED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


class Oracle:
    """llama.cpp's tokenizer of ``vocabulary``; ``before`` and ``after`` are the ids it adds around a text."""

    def __init__(self, source: SourceTokenizer, vocabulary: Vocabulary, before: list[int], after: list[int]):
        self._source, self._vocabulary, self._before, self._after = source, vocabulary, before, after
        self._ids = {text: number for number, text in enumerate(vocabulary.tokens)}
        given = {
            texts[0]
            for texts in [[t for t in texts if t in self._ids] for texts in BY_TEXT.values()]
            if texts
        }
        parsed = [
            text
            for number, text in enumerate(vocabulary.tokens)
            if vocabulary.types[number] in _PARSED or text in OVERRIDDEN
        ]
        kinds = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
        self._matched = {
            text: number for text, number in self._ids.items() if vocabulary.types[number] in kinds
        }
        self._longest = max(map(len, self._matched), default=1)
        self._parsed = sorted(parsed, key=lambda text: -len(text.encode()))
        self.overridden = {
            text
            for text in OVERRIDDEN | given
            if text in self._ids and vocabulary.types[self._ids[text]] == TokenType.NORMAL
        } & set(parsed)

    def encode(self, text: str) -> list[int]:
        ids = list(self._before)
        after_special = True
        for part in self.partition(text):
            if isinstance(part, int):
                ids.append(part)
                after_special = True
            else:
                ids += self._plain(part, after_special)
                after_special = False
        return ids + self._after

    def partition(self, text: str) -> list[str | int]:
        """The text cut at special tokens, the longest looked for first, each in all of the text."""
        parts: list[str | int] = [text] if text else []
        for special in self._parsed:
            if special not in text:
                continue
            number, new = self._ids[special], list[str | int]()
            for part in parts:
                if isinstance(part, int):
                    new.append(part)
                    continue
                for index, piece in enumerate(part.split(special)):
                    new += [number] * bool(index) + [piece] * bool(piece)
            parts = new
        return parts

    def words(self, text: str) -> list[str]:
        """The words of a piece of text of a ``gpt2`` vocabulary."""
        return split(BY_NAME[self._vocabulary.pre].split, text)

    def _plain(self, text: str, after_special: bool) -> list[int]:
        if self._vocabulary.model == "gpt2":
            return self._byte_level(text)
        prefix = " " if self._vocabulary.flags.get("add_space_prefix") and after_special else ""
        if self._vocabulary.model == "llama":
            return self._by_scores((prefix + text).replace(" ", SPACE))
        return self._unigram(text)

    def _byte_level(self, text: str) -> list[int]:
        pre = BY_NAME[self._vocabulary.pre]
        model = self._source.backend.model
        was = model.ignore_merges
        model.ignore_merges = pre.ignore_merges
        try:
            if not pre.byte_level:
                return [t.id for word in self.words(text.replace(" ", SPACE)) for t in model.tokenize(word)]
            return [token.id for word in self.words(text) for token in model.tokenize(to_bytes(word))]
        finally:
            model.ignore_merges = was

    def _by_scores(self, text: str) -> list[int]:
        """SentencePiece's BPE as llama.cpp has it: of neighbours that join to a token the best score first,
        then leftmost."""
        scores, ids = self._vocabulary.scores or [], self._ids
        symbols: list[str] = list(text)
        before, after = list(range(-1, len(symbols) - 1)), [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0 and (number := ids.get(symbols[left] + symbols[right])) is not None:
                heapq.heappush(
                    queue, (-scores[number], left, right, len(symbols[left]) + len(symbols[right]))
                )

        for index in range(1, len(symbols)):
            offer(index - 1, index)
        while queue:
            _, left, right, size = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != size:
                continue
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        out = []
        for symbol in symbols:
            if symbol in ids:
                out.append(ids[symbol])
            elif symbol:
                out += [ids.get(f"<0x{byte:02X}>", self._vocabulary.unknown or 0) for byte in symbol.encode()]
        return out

    def _unigram(self, text: str) -> list[int]:
        """The best-scored cut of the text as llama.cpp normalizes it; scores are summed in double precision,
        a tie goes to the cut found first, unknown characters in a row are one token."""
        normalized = self._spaced(text)
        scores, types, unknown = (
            self._vocabulary.scores or [],
            self._vocabulary.types,
            self._vocabulary.unknown or 0,
        )
        plain = [score for score, kind in zip(scores, types, strict=True) if kind == TokenType.NORMAL]
        lost = min(plain, default=0.0) - 10.0
        best: list[tuple[float, int, int]] = [(-math.inf, unknown, 0)] * (len(normalized) + 1)
        best[0] = (0.0, unknown, 0)
        for start in range(len(normalized)):
            base, single = best[start][0], False
            for end in range(start + 1, min(len(normalized), start + self._longest) + 1):
                number = self._matched.get(normalized[start:end])
                if number is not None:
                    single = single or end == start + 1
                    score = base + (0.0 if types[number] == TokenType.USER_DEFINED else scores[number])
                    if score > best[end][0]:
                        best[end] = (score, number, start)
            if not single and base + lost > best[start + 1][0]:
                best[start + 1] = (base + lost, unknown, start)
        ids: list[int] = []
        at = len(normalized)
        while at > 0:
            _, number, at = best[at]
            if not (ids and number == unknown == ids[-1]):
                ids.append(number)
        return ids[::-1]

    def _spaced(self, text: str) -> str:
        flags = self._vocabulary.flags
        if charsmap := flags.get("precompiled_charsmap"):
            from tokenizers.normalizers import Precompiled

            text = Precompiled(charsmap).normalize_str(text)
        merge, prepend = bool(flags.get("remove_extra_whitespaces")), bool(flags.get("add_space_prefix"))
        out, in_word, prepended = [], False, False
        for character in text:
            if character == " ":
                in_word = False
                if not merge:
                    out.append(SPACE)
                continue
            if not in_word and (merge or (prepend and not prepended)):
                out.append(SPACE)
                prepended = True
            in_word = True
            out.append(character)
        return "".join(out)
