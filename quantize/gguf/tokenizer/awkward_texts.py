"""A few hundred texts that tokenizers stumble over: what a written vocabulary is verified with."""

from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.gguf.tokenizer.pre import HARD_PROBES, PROBES

TEXTS = (
    "", "a", "ab", " a", "a ", "Hello", "hello", "HELLO", "Hello World", "Hello, y'all! How are you 😁 ?",
    "ied 4 ½ months", "The quick brown fox jumps over the lazy dog.", "w048 7tuijk dsdfhu",
    "нещо на Български",
    "កាន់តែពិសេសអាចខលចេញ",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ (only emoji that has its own token)", "!!!!!!",
    "?!?!?!",
    "\"", "'", "''", "'''",
    # code
    "for (int i = 0; i < n; ++i) {\n    sum += a[i] * b[i];\n}\n",
    "import numpy as np\n\n\ndef f(x: float) -> float:\n\treturn x\n", "SELECT * FROM t WHERE a <= 3 AND b "
                                                                       "!= 'x';",
    "<html><body class=\"x\">&amp;</body></html>", "$ ls -la | grep foo > /dev/null 2>&1",
    "{\"key\": [1, 2.5, -3e-10], \"n\": null}", "x = y if z else w  # comment\n",
    "#include <stdio.h>\r\nint main() { return 0; }\r\n", "std::vector<std::pair<int, float>> v;",
    "a->b.c[d](e){f}",
    "\\frac{1}{2} \\alpha_{i}^{2}", "print(f\"{x!r:>10}\")", "fn<'a>(&'a mut self)",
    "0x1F 0b101 1e-5 1_000_000 3.14f 10L", "if(x){y;}else{z;}", "/* a\n * b\n */", "--flag=value -x",
    "@decorator\nclass C: ...", "a\\nb\\tc",
    # numbers
    "0", "00", "000", "0000", "1234567890", "3.14159265358979", "1,234,567.89", "1/2", "50%", "$1,000",
    "2024-01-31T23:59:59Z", "+1 (555) 010-9999", "1 2 3", "1  2   3", "a1b2c3", "4th 5TH", "½ ¼ ²", "٣٤٥",
    "१२३४",
    "１２３", "Ⅳ",
    # white space
    " ", "  ", "   ", "    ", "     ", " " * 15, " " * 16, " " * 31, " " * 32, " " * 33, " " * 64, "\t",
    "\t\t", "\t \t",
    "\n", "\n\n", "\n\n\n", "\n" * 10, "\n" * 40, "\r", "\r\n", "\r\n\r\n", " \n", "\n ", " \n \n ", "\n\t\n",
    "a\n\n\nb",
    "a   b", "a    \n    b", "a\t\tb", "  a  ", "\u00a0", "\u3000", "a\u00a0b", "\u2003x\u2009y", "x\u200by",
    "\ufeffx",
    "\x0b", "\x0c", "\x85", "\u2028x", "end ", "end  ", "end\n", "end \n",
    # scripts
    "中文", "我想在apple工作1314151天～", "今天天气很好，我们去公园吧。", "繁體中文測試", "日本語", "これはテストです。",
    "カタカナ", "ﾊﾝｶｸ", "한국어", "안녕하세요 세계", "Привет, мир!", "Українська мова", "Ελληνικά", "עברית",
    "مرحبا بالعالم", "العَرَبِيَّةُ", "हिन्दी में", "தமிழ்", "ไทยแลนด์", "Tiếng Việt", "Türkçe İıĞğ",
    "Čeština ěščřž",
    "Straße ẞ", "ﬁ ﬂ ﬀ", "œuvre Æsop", "ñ", "n\u0303", "e\u0301", "é", "Å", "Ω", "ǆ", "；", "\u037e", "\u1f71",
    "\u0958", "ḍ̇", "가", "각", "ᄀ\u1161\u11a8", "mixed中文English日本語한국어русский", "aбвгd", "αβγ123abc",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "ＦＵＬＬ　ＷＩＤＴＨ", "①②③", "𠀀𠮷", "अ\u094d\u200dक", "ក្ខ",
    # emoji and symbols
    "😀", "😀😀😀", "👍🏽", "👩‍💻", "🏳️‍🌈", "🇫🇷🇩🇪", "❤️", "☃", "™®©", "→⇒", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋",
    "█▓▒░", "───", "•●○", "…", "“quotes”", "‘it’s’", "–—", "№ §", "\u0000", "\u0001\u0002", "\u007f",
    "\u00ad", "\ufffd", "\ue000", "\U000e0041", "\U0001fae8", "\ud7ff",
    # words
    "I'm you're he's we've they'd it'll don't", "I'M YOU'RE HE'S WE'VE", "o'clock rock'n'roll", "'quoted'",
    "don''t",
    "naïve façade", "e.g. i.e. etc.", "U.S.A.", "http://www.example.com/path?query=1&x=2#frag",
    "user@example.com",
    "C++ C# F#", "snake_case camelCase PascalCase SCREAMING_CASE kebab-case", "aaaaaaaaaaaaaaaa",
    "antidisestablishmentarianism", "Donaudampfschifffahrtsgesellschaft", "AbCdEfGh", "iPhone15Pro",
    "ALLCAPSword",
    "wordALLCAPS", "x" * 100, "ab" * 60, "=" * 80, "-" * 17, "a.b.c", "a,b;c:d", "(a)(b)[c]{d}", "...",
    "....", "!?",
    "a...b", "¿Qué? ¡Sí!", "«guillemets»", "end.Start", "end. Start", "end.\nStart", "end.\n\nStart",
    # text that looks like tokens, or like the sign for a space
    "▁", "▁▁", "a▁b", "▁a", "Ġ", "Ċ", "Ġa", "<0x0A>", "<0x41>", "<s>", "</s>", "<s>a</s>", "a<s>b", "<unk>",
    "<pad>",
    "[PAD]", "[PAD0]", "<mask>", "<bos>", "<eos>", "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n",
    "<|begin_of_text|>", "<|eot_id|>", "[INST] hi [/INST]", "<start_of_turn>user\nhi<end_of_turn>\n",
    "<think>\n</think>",
    "<|", "|>", "<|x|>", "</", "<<SYS>>", "<|endoftext", "<s", "<tool_call>", "<｜User｜>", "</s></s>", " <s> ",
    "<EOT>",
    "<PRE>", "[EOS]",
)  # fmt: skip
ADDED_TOKENS = 48  # how many of the source's own added tokens are tried, spread evenly over them


def awkward_texts(source: SourceTokenizer) -> list[str]:
    """The texts above, the probes of pre-tokenizers, and the source's own added tokens in several
    surroundings."""
    added = sorted(source.added_tokens, key=source.added_tokens.__getitem__)
    step = max(1, -(-len(added) // ADDED_TOKENS))
    sample = [*added[::step], *added[-2:]]
    around = [text for token in sample for text in (token, f"a{token}b", f" {token} ", f"{token}{token}\n")]
    together = ["x".join(sample[:8]), " ".join(sample[:8])]
    return list(dict.fromkeys([*TEXTS, *PROBES, *HARD_PROBES, *around, *together]))
