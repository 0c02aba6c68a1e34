"""Which of llama.cpp's pre-tokenizers a tokenizer.json asks for, found by what its own split does to probe
texts.

Not by the ids of one string, which change with every vocabulary, and not by comparing patterns as text, which
are written in many ways: the file's own normalizer and pre-tokenizer split the probes, llama.cpp's ways of
splitting (``llamacpp_split``) split them too, and the one that agrees on every probe is chosen. Some probes
are beyond what llama.cpp's regexes can follow (case outside ASCII, combining marks): they only decide between
those that agree on all the others.
"""

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any
from unicodedata import category

from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.errors import Unsupported
from quantize.gguf.tokenizer.llamacpp_split import split
from quantize.gguf.tokenizer.pretokenizers import BY_NAME, FAMILY_NAMES, PRES, Pre

PROBES = (
    "Hello world, this is a test.",
    "I'll say it's what they've done; we'd see, I'm sure you're 'told don't",
    "IT'S HE'LL WE'VE They'D I'M YOU'RE 'S 'T x'Ll y'Re z'Ve",
    "İstanbul'da Ankara'dan Ali'nin",
    "1 12 123 1234 12345 123456 1234567 12345678 a1 1a 12ab34 3.14159 1,234,567.89 x123y 7",
    " 1 22  333   4444    55555",
    "a b  c   d    e     f      g       h        i",
    " leading", "  two leading", "trailing ", "trailing  ", "   ", " ", "\n", "\n\n", "\n\n\n\n", "\t",
    "\t\t\tx", " \n ", "a\n",
    "a\n\n",
    "line one\nline two\n\nline four\n \n  indented\n\ttab\n\n\n  end\n",
    "dos\r\nline\r\n\r\nend\r", "x \r\n y", "a  \n  b", "a\n  \n b", "a \t\n\t b", "word.\n\nNext", "end!\n",
    "(a)\n\n(b)",
    "def f(x):\n    return x**2 + 1  # comment\n\n\nclass A:\n        pass\n",
    "if (a[0] != b->c && d::e) { return !f; } /* ok */ // done\n/usr/local/bin\n",
    "path/to/file.txt\n/next", "x/\n/y", "http://example.com/a?b=c&d=e#f", "a/b //c ///\n",
    "!Abc #def $ghi _jkl __init__ snake_case kebab-case dotted.name @user <tag> </tag> {x} [y] \\cmd",
    "`code` ```block``` ~tilde~ ^caret^ |pipe| +plus+ =equal= <less> $5 $$ a+b=c x<y>z",
    "Wait... what?! No!!! -- yes -- (maybe) [or] {not} \"quoted\" 'single'",
    "naïve café résumé über Straße garçon",
    "Привет мир как дела", "Ελληνικά κείμενο", "中文字符测试，你好。", "我在apple工作131天", 
    "日本語のテキスト、カタカナとひらがな。",
    "한국어 문장 테스트", "ㄱㄴㄷ ㅏㅑ", "中文abc日本 123한글",
    "emoji 😀 test 👍🎉 ok 😶 x", "→ ← ∑ ∞ ≈ € £ ¥ © ™", "§1 №2 «quoted» „low“ “curly” ‘it’s’ — dash – en…",
    "，。！？；：（）【】", "a，b。c！", "a, b. c! d? e… f | g (h) i", "x,y.z!w?v", " ,a .b !c ?d",
    "\xa0nbsp\xa0here \u3000wide\u3000", "a\x0bb\x0cc",
    "²³ ½ Ⅷ ① 1²", "१२३ ٣٤٥",
    "IMGIMGABZ <sentinel:12>", "    four\n\n    again",
    " " * 5 + "x", " " * 9 + "x", " " * 17, " " * 33 + "y", " " * 130 + "z", " " * 260, " " * 600 + "w",
)  # fmt: skip

# Texts on which llama.cpp departs from some of the patterns it means to follow.
HARD_PROBES = (
    "camelCase PascalCase HTTPServer XMLHttpRequest iPhone eBay getHTTPResponse aB Ab AB ABc aBC",
    "我在apple工作1314天",
    "ÉCOLE École éCOLE ПРИВЕТ Привет приВЕТ ΑΒΓ Αβγ",
    "हिन्दी में पाठ", "العربيّة نصٌّ", "ภาษาไทยสวัสดี", "e\u0301tude a\u0300 n\u0303", "বাংলা লেখা",
    "தமிழ் உரை", "עִבְרִית",
    "ǅ ǈ ʰ ˢ ª º", "😶\u200d🌫️ 👨‍👩‍👧 ❤️", "a\u200bb\u200cc\ufeff", "\u0085next\u0085", "\x1c\x1d", "कान्छा១២៣",
)  # fmt: skip


@dataclass(frozen=True)
class Recognition:
    """``name``: what goes into ``tokenizer.ggml.pre``.

    ``departs``: hard probes that llama.cpp splits differently. ``prefix_space``: the file adds a space before
    the text, which llama.cpp's byte-level BPE does not. ``merges_whole``: the file's ``ignore_merges``,
    ``honoured`` by the pre-tokenizer chosen. ``older``: where older builds of llama.cpp do not know ``name``,
    the nearest that they do, and the texts for which that produces other ids.
    """

    name: str
    pre: Pre
    departs: tuple[str, ...]
    prefix_space: bool
    merges_whole: bool
    older: str = ""
    older_departs: tuple[str, ...] = ()

    @property
    def honoured(self) -> bool:
        return self.pre.ignore_merges == self.merges_whole


def known_names() -> list[str]:
    return sorted(BY_NAME)


def recognize(source: SourceTokenizer, model_type: str = "") -> Recognition:
    """The pre-tokenizer of a byte-level BPE. Errors: Unsupported, naming the nearest and --pre-tokenizer,
    where none agrees.

    If none splits all probes into the same words, one that produces the same ids with this vocabulary is
    enough (splitting digits makes no difference to a vocabulary that never joins them).
    """
    definition = source.definition
    cutter = Cutter(definition)
    whole = bool(definition["model"].get("ignore_merges"))
    candidates = [pre for pre in PRES if pre.byte_level]
    hard = HARD_PROBES + _marked(source)
    wanted = {text: cutter.pieces(text) for text in PROBES + hard}
    texts = {text: cutter.normalized(text) for text in wanted}

    def missed(
        pre: Pre, probes: tuple[str, ...], same: Callable[[tuple[str, ...], tuple[str, ...]], bool]
    ) -> tuple[str, ...]:
        return tuple(
            text for text in probes if not same(cutter.spelled(_words(pre.split, texts[text])), wanted[text])
        )

    def same_ids(words: tuple[str, ...], others: tuple[str, ...]) -> bool:
        return words == others or _ids(source, words) == _ids(source, others)

    same: Callable[[tuple[str, ...], tuple[str, ...]], bool] = tuple.__eq__
    fitting = [pre for pre in candidates if not missed(pre, PROBES, same)]
    if not fitting:
        same = same_ids
        fitting = [pre for pre in candidates if not missed(pre, PROBES, same)]
    if not fitting:
        nearest = min(candidates, key=lambda pre: len(missed(pre, PROBES, same)))
        differing = missed(nearest, PROBES, same)
        raise Unsupported(
            f"{source.file}: llama.cpp has no pre-tokenizer that splits text as this "
            f"file does (nearest: {nearest.names[0]}, which differs on {len(differing)} "
            f"of {len(PROBES)} probes, {min(differing, key=len)!r} for one); name the "
            f"one to use with --pre-tokenizer NAME, of: {', '.join(known_names())}"
        )
    # Of these, those that produce the same ids are equally good: names come best known first, which older
    # builds of llama.cpp know too.
    departs = {pre: missed(pre, hard, same_ids) for pre in fitting}
    best = min(fitting, key=lambda pre: (len(departs[pre]), pre.ignore_merges != whole, PRES.index(pre)))
    if best.ignore_merges and not whole and not _merges_reach_all(source):
        best = min(fitting, key=lambda pre: (pre.ignore_merges != whole, len(departs[pre]), PRES.index(pre)))
    name = FAMILY_NAMES.get(model_type, "")
    name = name if BY_NAME.get(name) is best else best.names[0]
    older = (
        min((pre for pre in fitting if not pre.since), key=lambda pre: len(departs[pre]), default=None)
        if best.since
        else None
    )
    return Recognition(
        name,
        best,
        departs[best],
        cutter.prefix_space,
        whole,
        older.names[0] if older else "",
        departs[older] if older else (),
    )


def _marked(source: SourceTokenizer, most: int = 200) -> tuple[str, ...]:
    """Tokens of the vocabulary that hold a letter with a combining mark, at most ``most``, spread evenly:
    what a split that parts the two never makes."""
    alphabet = byte_alphabet()
    spelled = [
        text
        for text in source.backend.get_vocab(with_added_tokens=False)
        if all(letter in alphabet for letter in text)
    ]
    texts = (
        bytes(alphabet[letter] for letter in text).decode("utf-8", "replace") for text in sorted(spelled)
    )
    marked = [
        text
        for text in texts
        if "\ufffd" not in text and any(category(letter)[0] == "M" for letter in text[1:])
    ]
    return tuple(marked[:: max(1, -(-len(marked) // most))])


def _merges_reach_all(source: SourceTokenizer) -> bool:
    """Whether merges make every token of the vocabulary, so that taking a word whole that is a token changes
    nothing."""
    model, added = source.backend.model, source.added_tokens
    return all(
        text in added or len(model.tokenize(text)) == 1
        for text in source.backend.get_vocab(with_added_tokens=False)
    )


def _ids(source: SourceTokenizer, words: tuple[str, ...]) -> list[int]:
    return [token.id for word in words for token in source.backend.model.tokenize(word)]


@cache
def _words(kind: str, text: str) -> tuple[str, ...]:
    return tuple(split(kind, text, meant=True))


class Cutter:
    """Only a tokenizer.json's normalizer and pre-tokenizer, without the prefix space.

    ``byte_level``: words come in GPT-2's byte alphabet (a split may fall inside a character).
    """

    def __init__(self, definition: dict[str, Any]):
        from tokenizers import Tokenizer

        pre = copy.deepcopy(definition.get("pre_tokenizer"))
        self.prefix_space = _drop_prefix_space(pre)
        self.byte_level = '"ByteLevel"' in json.dumps(pre)
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        backend = Tokenizer.from_str(
            json.dumps(
                {
                    "version": "1.0",
                    "normalizer": definition.get("normalizer"),
                    "pre_tokenizer": pre,
                    "model": empty,
                }
            )
        )
        self._normalizer, self._pre = backend.normalizer, backend.pre_tokenizer

    def normalized(self, text: str) -> str:
        return str(self._normalizer.normalize_str(text)) if self._normalizer else text

    def pieces(self, text: str) -> tuple[str, ...]:
        """The words of ``text`` as the model of the tokenizer gets them."""
        text = self.normalized(text)
        return tuple(word for word, _ in self._pre.pre_tokenize_str(text) if word) if self._pre else (text,)

    def spelled(self, words: Iterable[str]) -> tuple[str, ...]:
        """Words of plain text as ``pieces`` would spell them."""
        return tuple(map(to_bytes, words)) if self.byte_level else tuple(words)


def _drop_prefix_space(node: Any) -> bool:
    """Set add_prefix_space of every ByteLevel under ``node`` to false; whether one was true."""
    if isinstance(node, list):
        return [_drop_prefix_space(child) for child in node].count(True) > 0
    if not isinstance(node, dict):
        return False
    found = node.get("type") == "ByteLevel" and node.get("add_prefix_space", False)
    if found:
        node["add_prefix_space"] = False
    return any([found, _drop_prefix_space(node.get("pretokenizers"))])


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: character -> the byte it stands for."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def to_bytes(word: str) -> str:
    """Text -> GPT-2's byte alphabet."""
    letters = _letters()
    return "".join([letters[byte] for byte in word.encode()])


@cache
def _letters() -> dict[int, str]:
    return {byte: character for character, byte in byte_alphabet().items()}
