"""What llama.cpp's tokenizer gives for a rightly written file, done again in Python: tells its limits from faults.

Where llama.cpp's ids differ from the source's but equal these, nothing written into the file would mend it. Not fast: it is run
on the texts that differ.

Source: llama.cpp src/llama-vocab.cpp (``tokenizer_st_partition``, ``llm_tokenizer_spm_session``, ``llm_tokenizer_bpe_session``,
the overrides of token types in ``load``).
"""

import heapq
from typing import Any

from gguf import TokenType

from quantize.gguf.llamacpp_split import split
from quantize.gguf.pretokenizers import BY_NAME
from quantize.gguf.tokenizer_pre import to_bytes
from quantize.gguf.tokenizer_special import BY_TEXT
from quantize.gguf.tokenizer_vocabulary import SPACE, Vocabulary
from quantize.tokenizer import SourceTokenizer

# Texts that llama.cpp makes CONTROL (the last four USER_DEFINED) whatever type the file gives them.
OVERRIDDEN = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>",
    "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>",
    "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "<|channel|>", "<|message|>", "<|start|>", "<|constrain|>",
})  # fmt: skip
_PARSED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


class Oracle:
    """llama.cpp's tokenizer of ``vocabulary``; ``before`` and ``after`` are the ids it adds around a text."""

    def __init__(self, source: SourceTokenizer, vocabulary: Vocabulary, before: list[int], after: list[int]):
        self._source, self._vocabulary, self._before, self._after = source, vocabulary, before, after
        self._ids = {text: number for number, text in enumerate(vocabulary.tokens)}
        given = {texts[0] for texts in [[t for t in texts if t in self._ids] for texts in BY_TEXT.values()] if texts}
        parsed = [
            text for number, text in enumerate(vocabulary.tokens) if vocabulary.types[number] in _PARSED or text in OVERRIDDEN
        ]
        self._parsed = sorted(parsed, key=lambda text: -len(text.encode()))
        self.overridden = {
            text for text in OVERRIDDEN | given if text in self._ids and vocabulary.types[self._ids[text]] == TokenType.NORMAL
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
        return self._unigram(text, prefix)

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
        """SentencePiece's BPE as llama.cpp has it: of neighbours that join to a token the best score first, then leftmost."""
        scores, ids = self._vocabulary.scores or [], self._ids
        symbols: list[str] = list(text)
        before, after = list(range(-1, len(symbols) - 1)), [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0 and (number := ids.get(symbols[left] + symbols[right])) is not None:
                heapq.heappush(queue, (-scores[number], left, right, len(symbols[left]) + len(symbols[right])))

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

    def _unigram(self, text: str, prefix: str) -> list[int]:
        """The source's own Viterbi on the text as llama.cpp normalizes it."""
        if self._source.is_sentencepiece:
            ids: list[int] = self._source.backend.encode(text)
            return ids
        normalizer = self._charsmap()
        text = normalizer.normalize_str(text) if normalizer else text
        if self._vocabulary.flags.get("remove_extra_whitespaces"):
            text = prefix + " ".join(word for word in text.split(" ") if word)
        else:
            text = prefix + text
        return [token.id for token in self._source.backend.model.tokenize(text.replace(" ", SPACE))]

    def _charsmap(self) -> Any:
        from tokenizers.normalizers import Precompiled

        data = self._vocabulary.flags.get("precompiled_charsmap")
        return Precompiled(data) if data else None
