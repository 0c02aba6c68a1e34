"""How the tokenizer.json files of published families split text: normalizer and pre-tokenizer, as they stand
in those files.

``pre``: the name llama.cpp has for it. ``ignore_merges``: as the family's file has it.
"""

from dataclasses import dataclass, field
from typing import Any

I_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT4 = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(contraction: str, digits: str, rest: str = r"\s*[\r\n]+|\s+(?!\S)|\s+") -> str:
    head = r"[^\r\n\p{L}\p{N}]?"
    words = f"{head}{UPPER}*{LOWER}+{contraction}|{head}{UPPER}+{LOWER}*{contraction}"
    return words + rf"|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|" + rest


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _digits(individual: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


NFC = {"type": "NFC"}
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK_WORDS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
ALPHABETS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ"
    "-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
ASIAN = "一-鿿㐀-䶿豈-\ufaff\u3040-ゟ゠-ヿ･-ﾟ⼀-\u2fdfเ-\u0e7f\u0e80-\u0effក-\u17ffက-႟ꩠ-ꩿꧠ-\ua9ff가-\ud7afᄀ-ᇿ"


@dataclass(frozen=True)
class Family:
    pre: str
    steps: list[dict[str, Any]]
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def pre_tokenizer(self) -> dict[str, Any]:
        return {"type": "Sequence", "pretokenizers": self.steps}


FAMILIES: dict[str, Family] = {
    "GPT-2": Family("gpt-2", [_bytes(True)]),
    "OLMo, MPT, GPT-NeoX": Family("gpt-2", [_bytes(True)], NFC),
    "StarCoder, SmolLM, Granite": Family("starcoder", [_digits(True), _bytes(True)]),
    "Command-R": Family("command-r", [_digits(True), _bytes(True)], NFC),
    "Qwen2, Qwen3": Family("qwen2", [_split(I_CONTRACTION + GPT4 % ""), _bytes(False)], NFC),
    "Qwen3.5": Family(
        "qwen35",
        [
            _split(
                I_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| "
                                r"?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            _bytes(False),
        ],
        NFC,
    ),
    "Llama 3": Family("llama-bpe", [_split(I_CONTRACTION + GPT4 % "{1,3}"), _bytes(False)],
    ignore_merges=True),
    "GLM-4": Family("glm4", [_split(I_CONTRACTION + GPT4 % "{1,3}"), _bytes(False)], ignore_merges=True),
    "DBRX, Phi-4, OLMo 2": Family("dbrx", [_split(I_CONTRACTION + GPT4 % "{1,3}"), _bytes(False)]),
    "DeepSeek-V3": Family(
        "deepseek-v3",
        [_split(r"\p{N}{1,3}"), _split(CJK), _split(DEEPSEEK_WORDS + r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        _bytes(False)],
    ),
    "DeepSeek LLM": Family(
        "deepseek-llm",
        [
            _split("[\r\n]"), _split(f"\\s?[{ALPHABETS}]+"), _split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            _split(r"\s+$"),
            _split("[一-龥ࠀ-一가-퟿]+"), _digits(True),
            _bytes(False),
        ],
    ),
    "DeepSeek-Coder": Family(
        "deepseek-coder",
        [
            _split("[\r\n]"), _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _split("[一-龥ࠀ-一가-퟿]+"),
            _digits(True),
            _bytes(False),
        ],
    ),
    "Falcon": Family(
        "falcon",
        [{"type": "Punctuation", "behavior": "Contiguous"}, _bytes(True), _digits(False),
        _split("[0-9][0-9][0-9]")],
    ),
    "BLOOM": Family("bloom", [_split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), _bytes(False)]),
    "Viking": Family("viking", [_split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), _digits(True), _bytes(False)]),
    # llama.cpp's "gpt-4o" cuts letters from their combining marks; this one does not, and splits as the file
    # does otherwise.
    "GPT-4o, Llama 4": Family("granite-embed-multi-97m", [_split(_cased(I_CONTRACTION + "?", "{1,3}")),
    _bytes(False)]),
    "Mistral Nemo": Family("tekken", [_split(_cased("", "")), _bytes(False)], ignore_merges=True),
    "Granite embedding": Family(
        "granite-embed-multi-97m", [_split(_cased(I_CONTRACTION + "?", "{1,3}")), _bytes(False)],
        ignore_merges=True
    ),
    "Tiny Aya": Family(
        "tiny_aya", [_split(r"\d{1,3}(?=(?:\d{3})*\b)"), _split(_cased(I_CONTRACTION + "?", "{1,3}")),
        _bytes(False)]
    ),
    "Jais 2": Family(
        "jais-2",
        [
            _split(
                I_CONTRACTION
                + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
                  r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)"
                + r"|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
            ),
            _bytes(False),
        ],
    ),
    "Spark 2.5": Family(
        "spark2_5",
        [
            _split(r"\p{N}{1,3}"), _split(CJK), _split(DEEPSEEK_WORDS + "|[\r\n]|\\s+(?!\\S)|\\s+"),
            _digits(True), _bytes(False),
        ],
    ),
    "Youtu": Family(
        "youtu",
        [
            _split("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+"),
            _split(_cased(I_CONTRACTION + "?", "")), _bytes(False),
        ],
        ignore_merges=True,
    ),
    "Chameleon": Family(
        "chameleon",
        [
            _split("<sentinel:[0-9]+>"), _split("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            _split("([\\t\\n]|    |  )"),
            _digits(True),
            {"type": "Punctuation", "behavior": "Isolated"}, _bytes(True),
        ],
    ),
    "Kimi K2": Family(
        "kimi-k2",
        [
            _split(
                r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}"
                r"\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| "
                r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            _bytes(False),
        ],
    ),
    "SuperBPE": Family("superbpe", [_split(r"\p{N}+"), _split(r"(?=(\d{3})+(?!\d))"), _bytes(False)]),
    "Ling (BailingMoE)": Family(  # llama.cpp's "bailingmoe" is another way to write the same
        "qwen2",
        [
            _split(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| "
                r"?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
            ),
            _bytes(False),
        ],
    ),
    "Seed-Coder": Family(
        "seed-coder",
        [
            _split(I_CONTRACTION + "|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}"
                   "| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
            _bytes(False),
        ],
    ),
    "ufakzeka": Family("ufakzeka", [_split((GPT4 % "")[1:]), _bytes(False)]),
    "Trinity (AFMoE)": Family(
        "afmoe",
        [
            _split(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"),
            _split(f"[{ASIAN}]+"),
            _split(DEEPSEEK_WORDS + r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), _bytes(False),
        ],
    ),
    "Laguna": Family("laguna", [_split(r"[^\n]+|[\n]+"), _split(I_CONTRACTION + GPT4 % ""), _bytes(False)]),
    "K-EXAONE": Family(
        "exaone-moe",
        [
            _split(
                I_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| "
                                r"?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]"
                r"|\s+(?!\S)|\s+"
            ),
            _bytes(False),
        ],
        NFC,
    ),
    "MiniCPM5": Family(
        "minicpm5",
        [
            _split(r"\p{N}{1,3}"),
            _split(I_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| "
                                   r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
            _bytes(False),
        ],
        ignore_merges=True,
    ),
}  # fmt: skip
