"""Whether llama.cpp produces the source's own token ids with the written file; and if not, whether any file
would."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.library_folder import library_folder
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import Unsupported
from quantize.files import read_json
from quantize.gguf.tokenizer.awkward_texts import awkward_texts
from quantize.gguf.tokenizer.embedding import embedding_rows
from quantize.gguf.tokenizer.llamacpp_split import split
from quantize.gguf.tokenizer.llamacpp_tokenize import Oracle
from quantize.gguf.tokenizer.pre import Cutter, recognize
from quantize.gguf.tokenizer.pretokenizers import BY_NAME, PRES
from quantize.gguf.tokenizer.special import added_around
from quantize.gguf.tokenizer.vocabulary import SPACE, Vocabulary, read_vocabulary
from quantize.quiet import quiet
from quantize.terminal import printable

ADDED_TOKENS = 2000
DECLARING = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")


@dataclass(frozen=True)
class Mismatch:
    """A text on which the ids differ. ``fixable``: a file written otherwise would mend it."""

    text: str
    source_ids: list[int]
    llamacpp_ids: list[int]
    cause: str
    fixable: bool


@dataclass
class TokenizerReport:
    compared: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    alone: str = ""  # why transformers' own reading of the folder was not compared

    @property
    def fixable(self) -> list[Mismatch]:
        return [mismatch for mismatch in self.mismatches if mismatch.fixable]

    def summary(self) -> str:
        """One line: how many texts, how many differ, why."""
        alone = f"; not compared with transformers' own reading: {self.alone}" if self.alone else ""
        if not self.mismatches:
            return f"{self.compared} texts, all equal{alone}"
        causes = Counter(mismatch.cause for mismatch in self.mismatches)
        return (
            f"{self.compared} texts, {len(self.mismatches)} differ: "
            + "; ".join(f"{c} ({n})" for c, n in causes.most_common())
            + alone
        )


def verify_tokenizer(
    checkpoint: Checkpoint,
    tokenize: Callable[[str], list[int]],
    *,
    pre: str | None = None,
    texts: Iterable[str] | None = None,
) -> TokenizerReport:
    """Compare ``tokenize`` (llama.cpp's on the written file, adding and parsing special tokens) with the
    source's ids.

    ``texts``: a few hundred awkward ones where not given. ``pre``: the name given with --pre-tokenizer, if
    one was.

    Each added token is compared with transformers' own reading of the folder too, which shares no code with
    what wrote the file.
    """
    source = SourceTokenizer.open(checkpoint.folder)
    report = TokenizerReport()
    differing = []
    texts = list(awkward_texts(source) if texts is None else texts)
    report.compared = len(texts)
    for text in texts:
        wanted, got = source.encode(text), tokenize(text)
        if wanted != got:
            differing.append((text, wanted, got))
    rows = embedding_rows(checkpoint)
    theirs, report.alone = added_by_transformers(checkpoint.folder)
    for text, number in theirs.items():
        got = tokenize(text)
        if number in got or (rows is not None and number >= rows):
            continue
        if source.added_tokens.get(text) == number:
            differing += [] if text in texts else [(text, source.encode(text), got)]
        else:
            report.mismatches.append(Mismatch(text, [number], got, f"token {number} to transformers", True))
    report.compared += len(theirs)
    if differing:
        vocabulary = read_vocabulary(source, rows, pre=pre, model_type=checkpoint.model_type)
        judge = _Judge(source, vocabulary, _better_pre(source, vocabulary, pre, texts))
        report.mismatches += [
            Mismatch(text, wanted, got, *judge(text, wanted, got)) for text, wanted, got in differing
        ]
    return report


def added_by_transformers(folder: Path) -> tuple[dict[str, int], str]:
    """(text -> id of the tokens that transformers finds in a text before it splits it, why it could not be
    asked).

    At most some ``ADDED_TOKENS``, spread evenly; those that a file of the folder names, not those that only
    its class adds.
    """
    with quiet(), library_folder(folder, False) as seen:
        from transformers import AutoTokenizer

        try:
            decoder = AutoTokenizer.from_pretrained(str(seen), trust_remote_code=False).added_tokens_decoder
        except (
            Exception
        ) as error:  # of any kind: code that is not run, a class it has not, a file it cannot read
            return {}, printable(f"{type(error).__name__}: {error}", 120)
    declared = _strings(folder)
    numbers = [number for number in sorted(decoder) if decoder[number].content in declared - {""}]
    return {
        decoder[number].content: number for number in numbers[:: max(1, -(-len(numbers) // ADDED_TOKENS))]
    }, ""


def _strings(folder: Path) -> set[str]:
    """Every text in the files of ``folder`` that can declare a token, but for the vocabulary itself."""
    found: set[str] = set()
    todo: list[Any] = [read_json(path) for name in DECLARING if (path := folder / name).is_file()]
    while todo:
        node = todo.pop()
        if isinstance(node, str):
            found.add(node)
        elif isinstance(node, dict):
            todo += [key for key in node if key != "model"] + [
                value for key, value in node.items() if key != "model"
            ]
        elif isinstance(node, list):
            todo += node
    return found


class _Judge:
    def __init__(self, source: SourceTokenizer, vocabulary: Vocabulary, better: str | None):
        self._source, self._vocabulary, self._better = source, vocabulary, better
        before, after = added_around(source)
        self._oracle = Oracle(
            source, vocabulary, before if len(before) == 1 else [], after if len(after) == 1 else []
        )
        self._around = len(before), len(after)
        self._cutter = None if source.is_sentencepiece else Cutter(source.definition)

    def __call__(self, text: str, wanted: list[int], got: list[int]) -> tuple[str, bool]:
        """(cause, whether a file written otherwise would mend it)."""
        if any(number >= len(self._vocabulary.tokens) for number in wanted):
            return "a token without a row in the embedding", False
        if self._better is not None:
            return f"another pre-tokenizer splits as the source does: {self._better}", True
        if got == self._oracle.encode(text):
            return self._limit(text), False
        if got[1:] == wanted or wanted[1:] == got:
            return "add_bos_token or its id", True
        if got[:-1] == wanted or wanted[:-1] == got:
            return "add_eos_token or its id", True
        return (
            "pre-tokenizer, merges or token types"
            if self._vocabulary.model == "gpt2"
            else "scores, flags or token types"
        ), True

    def _limit(self, text: str) -> str:
        """What of llama.cpp's own keeps it from the source's ids on ``text``; several where several apply."""
        causes = []
        if max(self._around) > 1:
            causes.append("more than one token added around a text")
        if any(token in text for token in self._oracle.overridden):
            causes.append("token types that llama.cpp overrides")
        if change := self._normalization(text):
            causes.append(change)
        if self._vocabulary.model == "gpt2" and self._cutter is not None:
            if self._cutter.prefix_space:
                causes.append("a space added before the text")
            if any(
                self._cutter.spelled(self._oracle.words(self._cutter.normalized(part)))
                != self._cutter.pieces(part)
                for part in self._oracle.partition(text)
                if isinstance(part, str)
            ):
                causes.append("its split code")
        if not causes and self._source.definition.get("model", {}).get("ignore_merges"):
            causes.append("ignore_merges")
        if not causes and any(token in text for token in self._source.added_tokens):
            causes.append("how added tokens are found and what follows them")
        if not causes and SPACE in text:
            causes.append(f"{SPACE} in the text itself")
        if not causes and self._vocabulary.model == "t5":
            causes.append("spaces alone" if not text.strip() else "cuts with equal scores")
        if not causes:
            causes.append(
                "spaces at the start"
                if text.startswith((" ", SPACE))
                else "merges that scores cannot express"
            )
        return ", ".join(causes)

    def _normalization(self, text: str) -> str:
        """What the source's normalizer does to the text beyond turning spaces into U+2581 and putting one
        before; or ""."""
        result = (
            self._source.backend.normalize(text) if self._cutter is None else self._cutter.normalized(text)
        )
        if self._vocabulary.model != "gpt2":
            result, text = result.replace(SPACE, " "), text.replace(SPACE, " ")
        if result in (text, " " + text):
            return ""
        return "stripping or collapsing of spaces" if result.split() == text.split() else "normalization"


def _better_pre(
    source: SourceTokenizer, vocabulary: Vocabulary, pre: str | None, texts: list[str]
) -> str | None:
    """A name other than the ``pre`` that was given, if it splits as the source does, or nearer to it on
    ``texts``."""
    if pre is None or vocabulary.model != "gpt2":
        return None
    try:
        found = recognize(source)
    except Unsupported:
        cutter = Cutter(source.definition)
        wanted = {text: cutter.pieces(text) for text in texts}

        def missed(kind: str) -> int:
            return sum(
                cutter.spelled(split(kind, cutter.normalized(text))) != pieces
                for text, pieces in wanted.items()
            )

        best = min((p for p in PRES if p.byte_level), key=lambda p: missed(p.split))
        return best.names[0] if missed(best.split) < missed(BY_NAME[pre].split) else None
    same = found.pre.split == BY_NAME[pre].split and found.pre.ignore_merges == BY_NAME[pre].ignore_merges
    return None if same else found.name
