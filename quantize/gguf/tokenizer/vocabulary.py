"""A source's vocabulary in llama.cpp's form: tokens, types, scores or merges, and the flags of its kind of
tokenizer.

Three kinds: ``gpt2`` (byte-level BPE, by merges), ``llama`` (SentencePiece's BPE, by scores) and ``t5``
(unigram, by scores).
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import TokenType

from quantize.artifact.artifact import Note
from quantize.checkpoint.tokenizer import SENTENCEPIECE_FILES, SourceTokenizer
from quantize.checkpoint.tokenizer_added import added_to_pieces
from quantize.errors import BadInput, Unsupported
from quantize.gguf.tokenizer import sentencepiece_model as sp
from quantize.gguf.tokenizer.pre import Cutter, known_names, recognize
from quantize.gguf.tokenizer.pretokenizers import BY_NAME

SPACE = "▁"
SPECIAL_SCORE = -1000.0  # llama.cpp's converter sets it for added tokens; its tokenizer ignores it
PADDING_SCORE = -10000.0
RAW_BPE = "sarvam-moe"  # merges over raw text, spaces as U+2581, nothing put before it


@dataclass
class Vocabulary:
    """``scores`` for ``llama`` and ``t5``, ``merges`` (rank order) for ``gpt2``; ``flags``:
    ``tokenizer.ggml.`` keys without that prefix.

    ``unknown``: the id for what no token covers, or None.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    unknown: int | None = None
    notes: list[Note] = field(default_factory=list)


def read_vocabulary(
    source: SourceTokenizer, rows: int | None, *, pre: str | None = None, model_type: str = ""
) -> Vocabulary:
    """The vocabulary, filled up (or cut) to ``rows`` tokens, the rows of the model's embedding.

    Errors: Unsupported for a kind that llama.cpp has no tokenizer for, or a split that it does not know;
    BadInput for an unknown ``pre``.
    """
    if pre is not None and pre not in BY_NAME:
        raise BadInput(
            f"--pre-tokenizer {pre}: not a name llama.cpp knows; expected one of: {', '.join(known_names())}"
        )
    if source.is_sentencepiece:
        vocabulary = _from_sentencepiece(source.folder, source.file)
    else:
        vocabulary = _from_json(source, pre, model_type)
    if pre is not None and vocabulary.model != "gpt2":
        raise BadInput(
            f"--pre-tokenizer {pre}: {source.file.name} is "
            "SentencePiece-style, which has no pre-tokenizer in llama.cpp"
        )
    _fit(vocabulary, rows, source)
    return vocabulary


def is_sentencepiece_style(definition: dict[str, Any]) -> bool:
    """Whether a tokenizer.json's BPE works on text with U+2581 for spaces rather than on GPT-2's byte
    alphabet."""
    if definition["model"].get("byte_fallback"):
        return True
    return not _has(definition.get("pre_tokenizer"), "ByteLevel") and not _has(
        definition.get("normalizer"), "ByteLevel"
    )


def _from_json(source: SourceTokenizer, pre: str | None, model_type: str) -> Vocabulary:
    definition = source.definition
    kind = definition["model"].get("type") or ("BPE" if "merges" in definition["model"] else "Unigram")
    if kind == "Unigram":
        return _unigram(source)
    if kind != "BPE":
        raise Unsupported(
            f"{source.file}: a {kind} vocabulary, which no decoder of llama.cpp uses; expected BPE or Unigram"
        )
    if not is_sentencepiece_style(definition):
        return _byte_level(source, pre, model_type)
    for name in SENTENCEPIECE_FILES:
        if (source.folder / name).is_file():
            vocabulary = _from_sentencepiece(source.folder, source.folder / name)
            if vocabulary.model == "llama" and _agrees(vocabulary, source):
                vocabulary.flags = _space_flags(source)
                _add_declared(vocabulary, source)
                return vocabulary
    return _sentencepiece_bpe(source)


def _byte_level(source: SourceTokenizer, pre: str | None, model_type: str) -> Vocabulary:
    notes = []
    if pre is None:
        found = recognize(source, model_type)
        name = found.name
        if found.departs:
            notes.append(
                Note(
                    tensor="*",
                    what=f"tokenizer: {name} differs from tokenizer.json "
                    f"on {len(found.departs)} of the hard probe texts",
                    why="llama.cpp's split code ignores case and combining marks outside ASCII",
                )
            )
        if found.older:
            notes.append(
                Note(
                    tensor="*",
                    what=f"tokenizer: {name} is known to llama.cpp from "
                    f"{found.pre.since} on; older builds refuse the file",
                    why=f"{found.older}, which they know, produces other ids for "
                    f"{len(found.older_departs)} of the hard texts ({found.older_departs[0]!r} "
                    f"for one); use --pre-tokenizer {found.older} to write it",
                )
            )
        if not found.honoured:
            notes.append(
                Note(
                    tensor="*",
                    what=f"tokenizer: ignore_merges={str(found.merges_whole).lower()} "
                    f"of tokenizer.json is not kept by {name}",
                    why="llama.cpp ties it to the name of the "
                    "pre-tokenizer, and no other name splits this way",
                )
            )
        if found.prefix_space:
            notes.append(
                Note(
                    tensor="*",
                    what="tokenizer: no space is added before the text",
                    why="tokenizer.json asks for one (add_prefix_space); "
                    "llama.cpp's byte-level BPE cannot add it",
                )
            )
    else:
        name = pre
        notes.append(
            Note(tensor="*", what=f"tokenizer: pre-tokenizer {name}", why="given with --pre-tokenizer")
        )
    tokens, types = _tokens_of(source, byte_tokens=False, spaces=False)
    merges = [f"{left} {right}" for left, right in _merges(source) if " " not in left and " " not in right]
    return Vocabulary("gpt2", name, tokens, types, merges=merges, unknown=_unknown_id(source), notes=notes)


def _sentencepiece_bpe(source: SourceTokenizer) -> Vocabulary:
    """Scores from the merges: what is merged first has the highest score. Pieces that no merge makes come
    last.

    Scores join any two pieces that make a token, merges only the pairs that are listed. The two agree where
    every way to cut a token is listed, as for vocabularies that came from SentencePiece; others are written
    as merges over raw text, which llama.cpp can read where no space is put before the text.
    """
    tokens, types = _tokens_of(source, byte_tokens=True, spaces=True)
    flags = _space_flags(source)
    pairs = list(_merges(source))
    if not flags["add_space_prefix"] and not _every_split_merges(pairs):
        merges = [f"{left} {right}" for left, right in pairs if " " not in left and " " not in right]
        return Vocabulary("gpt2", RAW_BPE, tokens, types, merges=merges, unknown=_unknown_id(source))
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    count = len(pairs)
    scores = []
    for number, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            # A run of spaces is an added token and a merge at once: its rank would count if llama.cpp looked.
            scores.append(-float(ranks.get(source.piece(number) or "", -SPECIAL_SCORE)))
        elif kind in (TokenType.BYTE, TokenType.UNKNOWN):
            scores.append(0.0)
        else:
            scores.append(-float(ranks.get(text, count)))
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        scores=scores,
        flags=_space_flags(source),
        unknown=_unknown_id(source),
    )


def _every_split_merges(pairs: list[tuple[str, str]]) -> bool:
    """Whether (nearly) every cut of a token into two tokens that merges make is itself a merge."""
    listed = set(pairs)
    made = {left + right for left, right in pairs}
    cuts = present = 0
    for text in list(made)[:: max(1, len(made) // 2000)]:
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if (len(left) == 1 or left in made) and (len(right) == 1 or right in made):
                cuts += 1
                present += (left, right) in listed
    return present >= 0.999 * cuts


def _unigram(source: SourceTokenizer) -> Vocabulary:
    definition = source.definition
    tokens, types = _tokens_of(source, byte_tokens=True, spaces=True)
    known = {text: float(np.float32(score)) for text, score in definition["model"]["vocab"]}
    scores = [known.get(source.piece(number) or "", 0.0) for number in range(len(tokens))]
    flags = _space_flags(source)
    charsmap = _find(definition.get("normalizer"), "Precompiled")
    flags["remove_extra_whitespaces"] = _collapses_spaces(definition.get("normalizer"))
    if charsmap:
        flags["precompiled_charsmap"] = base64.b64decode(charsmap[0].get("precompiled_charsmap") or "")
    return Vocabulary("t5", "default", tokens, types, scores=scores, flags=flags, unknown=_unknown_id(source))


def _from_sentencepiece(folder: Path, path: Path) -> Vocabulary:
    spec = sp.read_spec(path)
    if spec.model_type not in (sp.BPE, sp.UNIGRAM):
        raise Unsupported(
            f"{path}: a SentencePiece word or character model; llama.cpp has BPE and unigram only"
        )
    tokens = [text.replace(SPACE, " ") if kind == sp.USER_DEFINED else text for text, _, kind in spec.pieces]
    scores = [score for _, score, _ in spec.pieces]
    types = [kind for _, _, kind in spec.pieces]
    ids = {text: number for number, (text, _, _) in enumerate(spec.pieces)}
    for number, (text, special) in sorted(added_to_pieces(folder, len(tokens), ids.get).items()):
        while len(tokens) <= number:
            tokens.append(f"[PAD{len(tokens)}]")
            scores.append(PADDING_SCORE)
            types.append(sp.UNUSED)
        control = special or looks_special(text)
        tokens[number] = text if control else text.replace(SPACE, " ")
        scores[number] = SPECIAL_SCORE
        types[number] = sp.CONTROL if control else sp.USER_DEFINED
    flags: dict[str, Any] = {"add_space_prefix": spec.dummy_prefix}
    if spec.model_type == sp.UNIGRAM:
        flags["remove_extra_whitespaces"] = spec.remove_extra_spaces
        if spec.charsmap:
            flags["precompiled_charsmap"] = spec.charsmap
    unknown = next((number for number, (_, _, kind) in enumerate(spec.pieces) if kind == sp.UNKNOWN), None)
    model = "llama" if spec.model_type == sp.BPE else "t5"
    return Vocabulary(model, "default", tokens, types, scores=scores, flags=flags, unknown=unknown)


def looks_special(text: str) -> bool:
    """Whether llama.cpp's converter makes an added token CONTROL though the file does not call it special."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _tokens_of(source: SourceTokenizer, *, byte_tokens: bool, spaces: bool) -> tuple[list[str], list[int]]:
    """(texts, types) by id of a tokenizer.json. Ids without a token become [PADn]."""
    backend = source.backend
    texts: dict[int, str] = {
        number: text for text, number in backend.get_vocab(with_added_tokens=True).items()
    }
    added = backend.get_added_tokens_decoder()
    unknown = _unknown_id(source)
    tokens, types = [], []
    for number in range(max(texts, default=-1) + 1):
        text = texts.get(number)
        if text is None:
            tokens.append(f"[PAD{number}]")
            types.append(TokenType.UNUSED)
        elif number == unknown:
            tokens.append(text)
            types.append(TokenType.UNKNOWN)
        elif number in added:
            control = added[number].special or looks_special(text)
            tokens.append(text if control or not spaces else text.replace(SPACE, " "))
            types.append(TokenType.CONTROL if control else TokenType.USER_DEFINED)
        else:
            tokens.append(text)
            types.append(TokenType.BYTE if byte_tokens and _is_byte(text) else TokenType.NORMAL)
    return tokens, [int(kind) for kind in types]


def _is_byte(text: str) -> bool:
    return (
        len(text) == 6
        and text.startswith("<0x")
        and text.endswith(">")
        and all(c in "0123456789ABCDEF" for c in text[3:5])
    )


def _unknown_id(source: SourceTokenizer) -> int | None:
    model = source.definition["model"]
    if "unk_id" in model:
        return model["unk_id"] if isinstance(model["unk_id"], int) else None
    text = model.get("unk_token")
    return source.id_of(text) if isinstance(text, str) else None


def _merges(source: SourceTokenizer) -> Iterable[tuple[str, str]]:
    """Errors: BadInput where a merge is not a pair."""
    for merge in source.definition["model"].get("merges") or []:
        pair = merge.split(" ") if type(merge) is str else merge
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadInput(
                f"{source.file}: the merge {merge!r} is not a pair of tokens; fetch the file again"
            )
        yield pair[0], pair[1]


def _agrees(vocabulary: Vocabulary, source: SourceTokenizer) -> bool:
    """Whether the .model beside a tokenizer.json spells its plain pieces the same way, so that its scores can
    be used."""
    added = source.backend.get_added_tokens_decoder()
    for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind in (sp.NORMAL, sp.BYTE) and source.piece(number) not in (None, text):
            return False
        if kind == sp.USER_DEFINED and number not in added:  # to the tokenizer.json it is a piece like others
            return False
    return True


def _add_declared(vocabulary: Vocabulary, source: SourceTokenizer) -> None:
    """Give a .model's vocabulary the added tokens that only tokenizer.json beside it knows."""
    scores = vocabulary.scores or []
    for number, token in sorted(source.backend.get_added_tokens_decoder().items()):
        while len(vocabulary.tokens) <= number:
            vocabulary.tokens.append(f"[PAD{len(vocabulary.tokens)}]")
            vocabulary.types.append(sp.UNUSED)
            scores.append(PADDING_SCORE)
        if vocabulary.types[number] in (sp.NORMAL, sp.UNUSED):
            control = token.special or looks_special(token.content)
            vocabulary.tokens[number] = token.content if control else token.content.replace(SPACE, " ")
            vocabulary.types[number] = sp.CONTROL if control else sp.USER_DEFINED
            scores[number] = SPECIAL_SCORE


def _space_flags(source: SourceTokenizer) -> dict[str, Any]:
    """add_space_prefix, from what the normalizer and pre-tokenizer do to a word."""
    return {"add_space_prefix": "".join(Cutter(source.definition).pieces("a")).startswith(SPACE)}


def _collapses_spaces(normalizer: Any) -> bool:
    """Whether a Replace rule turns runs of spaces into one."""
    return any(
        set(str(rule.get("pattern", {}).get("Regex", ""))) <= set(" {2,}+s\\▁")
        and rule.get("pattern", {}).get("Regex")
        for rule in _find(normalizer, "Replace")
    )


def _find(node: Any, kind: str) -> list[dict[str, Any]]:
    """Every node of type ``kind`` in a normalizer or pre-tokenizer."""
    if isinstance(node, list):
        return [found for child in node for found in _find(child, kind)]
    if not isinstance(node, dict):
        return []
    here = [node] if node.get("type") == kind else []
    return here + _find(node.get("normalizers"), kind) + _find(node.get("pretokenizers"), kind)


def _has(node: Any, kind: str) -> bool:
    return bool(_find(node, kind))


def _fit(vocabulary: Vocabulary, rows: int | None, source: SourceTokenizer) -> None:
    """Fill up to ``rows`` with unused tokens, or drop those that the embedding has no row for. Token texts
    become unique."""
    have = len(vocabulary.tokens)
    if rows is not None and rows < have:
        dropped = vocabulary.tokens[rows:]
        vocabulary.tokens, vocabulary.types = vocabulary.tokens[:rows], vocabulary.types[:rows]
        if vocabulary.scores:
            vocabulary.scores = vocabulary.scores[:rows]
        vocabulary.notes.append(
            Note(
                tensor="*",
                what=f"tokenizer: {len(dropped)} token{'s' if len(dropped) > 1 else ''} left out "
                f"({', '.join(dropped[:3])})",
                why=f"the embedding has {rows} rows, but {source.file.name} goes up to id {have - 1}",
            )
        )
    for number in range(have, rows or have):
        vocabulary.tokens.append(f"[PAD{number}]")
        vocabulary.types.append(int(TokenType.UNUSED))
        if vocabulary.scores is not None:
            vocabulary.scores.append(PADDING_SCORE)
    # llama.cpp aborts on two tokens with one text, and has no use for an empty one.
    seen: set[str] = set()
    for number, text in enumerate(vocabulary.tokens):
        if text in seen or not text:
            text = next(
                t for t in (f"[PAD{number}]", *(f"[PAD{number}_{n}]" for n in range(have))) if t not in seen
            )
            vocabulary.tokens[number], vocabulary.types[number] = text, int(TokenType.UNUSED)
        seen.add(text)
