"""llama.cpp's pre-tokenizers as data: every name it knows for ``tokenizer.ggml.pre``, how each splits text,
what each implies.

Facts from llama.cpp's src/llama-vocab.cpp (revision of llama-cpp-python 0.3.36), in llama.cpp's own regex
dialect: what the patterns mean there (categories collapsed to one byte, ASCII classes) is in
``quantize.gguf.tokenizer.llamacpp_split``.
"""

from dataclasses import dataclass

CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"

# Way of splitting -> regexes applied one after the other, each to the pieces that the one before left.
SPLITS: dict[str, tuple[str, ...]] = {
    "gpt2": (GPT2,),
    "digits+gpt2": (
        r"\p{N}",
        GPT2,
    ),
    "llama3": (
        CONTRACTION
        + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "qwen2": (
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "qwen35": (
        CONTRACTION
        + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
        + r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "gpt-4o": (
        r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
        + CONTRACTION
        + r"?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
        + CONTRACTION
        + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|"
        + r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
        + r"\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "deepseek-llm": (
        r"[\r\n]",
        r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-"
        + r"ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀"
        + r"-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        r"[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    ),
    "deepseek-coder": (
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        r"[一-龥ࠀ-一가-퟿]+",
        r"\p{N}",
    ),
    "falcon": (
        r"[\p{P}\$\+<=>\^~\|`]+",
        GPT2,
        r"[0-9][0-9][0-9]",
    ),
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
    "viking": (
        r" ?[^(\s|.,!?…。，、।۔،)]+",
        r"\p{N}",
    ),
    "granite-multi": (
        r"[^\r\n\p{L}\p{N}]?((?=[\p{L}\p{M}])([^a-z]))*((?=[\p{L}\p{M}])([^A-Z]))+"
        + CONTRACTION
        + r"?|[^\r\n\p{L}\p{N}]?((?=[\p{L}\p{M}])([^a-z]))+((?=[\p{L}\p{M}])([^A-Z]))*"
        + CONTRACTION
        + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "tiny-aya": (
        r"\d{1,3}(?=(?:\d{3})*\b)",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        + CONTRACTION
        + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        + CONTRACTION
        + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "jais2": (
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
        r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|"
        + r"\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
    ),
    "spark2.5": (
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|"""
        + r"[\r\n]|\s+(?!\S)|\s+",
        r"\p{N}",
    ),
    "youtu": (
        r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        + CONTRACTION
        + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        + CONTRACTION
        + r"?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "chameleon": (
        r"<sentinel:[0-9]+>",
        r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        GPT2,
    ),
    "kimi-k2": (r"\p{Han}+",),
    "superbpe": (
        r"\p{N}+",
        r"(?=(\d{3})+(?!\d))",
    ),
    "bailingmoe": (
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
        r"?[^\s\p{L}\p{N}]+[\r\n]*|" + r"\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    "seed-coder": (
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "ufakzeka": (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
    "afmoe": (
        r"\p{AFMoE_digits}",
        r"[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
        + r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "laguna": (
        r"[^\n]+|[\n]+",
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "exaone-moe": (
        CONTRACTION
        + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|"
        + r"\s+(?!\S)|\s+",
    ),
    "minicpm5": (
        r"\p{N}{1,3}",
        CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "lines": (r"[^\n]+|[\n]+",),
    "words": (r"\S+",),
    "default": (
        r"[\p{P}\$\+<=>\^~\|]+",
        GPT2,
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    ),
}


@dataclass(frozen=True)
class Pre:
    """``split`` is a key of SPLITS. ``byte_level``: text goes through GPT-2's byte alphabet (else raw UTF-8,
    spaces as U+2581).

    ``ignore_merges``: a piece that is a token is taken whole. ``names``: llama.cpp's names for it, all
    equivalent. ``since``: if builds still in use refuse the name, the month of the first build that knows it.
    """

    split: str
    names: tuple[str, ...]
    ignore_merges: bool = False
    byte_level: bool = True
    since: str = ""


# Of several that split alike the best known comes first: its name is what a file gets.
PRES: tuple[Pre, ...] = (
    Pre("gpt2", ("gpt-2", "phi-2", "olmo", "mpt", "jais", "exaone4", "gigachat", "a.x-4.0", "mellum",
    "modern-bert",
                 "trillion", "granite-docling", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de",
                 "jina-v1-en", "jina-v2-code",
                 "roberta-bpe")),
    Pre("qwen2", ("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan", "megrez", "grok-2", "solar-open",
    "kormo", "f2llmv2")),
    Pre("llama3", ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano",
                   "glm4", "glm5"), ignore_merges=True),
    Pre("llama3", ("smaug-bpe", "dbrx", "chatglm-bpe")),
    Pre("deepseek-v3", ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")),
    Pre("digits+gpt2", ("starcoder", "smollm", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
    "mellum2")),
    Pre("gpt-4o", ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")),
    Pre("tekken", ("tekken",), ignore_merges=True),
    Pre("qwen35", ("qwen35",)),
    Pre("deepseek-llm", ("deepseek-llm",)),
    Pre("deepseek-coder", ("deepseek-coder",)),
    Pre("falcon", ("falcon",)),
    Pre("bloom", ("bloom", "gpt3-finnish", "poro-chat")),
    Pre("viking", ("viking",)),
    Pre("granite-multi", ("granite-embed-multi-97m",), ignore_merges=True, since="June 2026"),
    Pre("tiny-aya", ("tiny_aya", "cohere2moe")),
    Pre("jais2", ("jais-2",)),
    Pre("spark2.5", ("spark2_5",)),
    Pre("youtu", ("youtu",), ignore_merges=True),
    Pre("chameleon", ("chameleon",)),
    Pre("kimi-k2", ("kimi-k2",)),
    Pre("superbpe", ("superbpe",)),
    Pre("bailingmoe", ("bailingmoe", "bailingmoe2", "llada-moe")),
    Pre("seed-coder", ("seed-coder",)),
    Pre("ufakzeka", ("ufakzeka",)),
    Pre("afmoe", ("afmoe",)),
    Pre("laguna", ("laguna",)),
    Pre("exaone-moe", ("exaone-moe",)),
    Pre("minicpm5", ("minicpm5",), ignore_merges=True),
    Pre("default", ("default",)),
    Pre("lines", ("sarvam-moe", "gemma4", "granite-embed-multi-311m"), byte_level=False),
)  # fmt: skip

BY_NAME: dict[str, Pre] = {name: pre for pre in PRES for name in pre.names}

# The name that llama.cpp's own converter uses for a family, used where it is equivalent to the one
# recognised: readers look at it.
FAMILY_NAMES: dict[str, str] = {
    "phi": "phi-2", "olmo": "olmo", "olmo2": "dbrx", "phi3": "dbrx", "dbrx": "dbrx", "mpt": "mpt",
    "stablelm": "stablelm2",
    "command_r": "command-r", "cohere": "command-r", "granite": "refact", "granitemoe": "refact",
    "smollm3": "smaug-bpe",
    "glm": "chatglm-bpe", "glm4": "glm4", "exaone4": "exaone4", "llama4_text": "llama4", "llama4": "llama4",
    "gpt_bigcode": "starcoder",
    "hunyuan_v1_dense": "hunyuan-dense", "falcon_h1": "falcon-h1", "lfm2": "lfm2", "bloom": "bloom",
    "pixtral": "pixtral",
}  # fmt: skip
