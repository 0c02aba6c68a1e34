"""Special token ids, what is added around a text, and chat templates, as ``tokenizer.*`` metadata."""

import re
from typing import Any

from gguf import GGUFValueType, Keys

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.config import read_generation_config
from quantize.checkpoint.tokenizer import SourceTokenizer, token_text
from quantize.checkpoint.tokenizer_files import read_if_there
from quantize.gguf.tokenizer.vocabulary import Vocabulary

Kvs = dict[str, tuple[Any, GGUFValueType]]
U32, BOOL, STRING, ARRAY = GGUFValueType.UINT32, GGUFValueType.BOOL, GGUFValueType.STRING, GGUFValueType.ARRAY
T = Keys.Tokenizer

# Tokens whose text alone gives them a role: no file of a checkpoint says so. The first that the vocabulary
# has is used (llama.cpp by itself takes whichever its hash table yields first).
BY_TEXT: dict[str, tuple[str, ...]] = {
    T.EOT_ID: ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>", "_<EOT>", "▁<EOT>", "[EOT]",
    "<end_of_utterance>",
               "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>"),
    T.EOM_ID: ("<|eom_id|>",),
    T.FIM_PRE_ID: ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>",
    "<|code_prefix|>",
                   "<|prefix|>"),
    T.FIM_SUF_ID: ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
    "<|code_suffix|>",
                   "<|suffix|>"),
    T.FIM_MID_ID: ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>",
    "<|code_middle|>",
                   "<|middle|>"),
    T.FIM_PAD_ID: ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    T.FIM_REP_ID: ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    T.FIM_SEP_ID: ("<|file_sep|>",),
}  # fmt: skip
# Texts that end generation in llama.cpp, regardless of the ids.
ENDS = frozenset(("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
"<EOT>", "_<EOT>",
                  "<|end_of_text|>", "<end_of_utterance>"))  # fmt: skip
ROLES = {
    "bos": T.BOS_ID,
    "eos": T.EOS_ID,
    "unk": T.UNK_ID,
    "sep": T.SEP_ID,
    "pad": T.PAD_ID,
    "mask": T.MASK_ID,
}


def special_kvs(
    checkpoint: Checkpoint, source: SourceTokenizer, vocabulary: Vocabulary
) -> tuple[Kvs, list[Note]]:
    """Ids of special tokens and the add_bos, add_eos flags. Ids outside the vocabulary are left out."""
    notes: list[Note] = []
    ids = {role: number for role in ROLES if (number := _role_id(checkpoint, source, role)) is not None}
    if "unk" not in ids and vocabulary.unknown is not None:
        ids["unk"] = vocabulary.unknown
    if source.is_sentencepiece:
        for role in ("bos", "eos"):
            number = getattr(source.backend, f"{role}_id")()
            if number >= 0:
                ids.setdefault(role, number)
    before, after = added_around(source)
    if len(before) > 1 or len(after) > 1:
        notes.append(
            Note(
                tensor="*",
                what="tokenizer: llama.cpp adds nothing "
                + ("before" if len(before) > 1 else "after")
                + " a text",
                why="the source adds the tokens "
                f"{[source.piece(n) for n in (before if len(before) > 1 else after)]}; "
                "llama.cpp can add one before and one after",
            )
        )
    for role, around in (("bos", before), ("eos", after)):
        if len(around) == 1 and ids.get(role) != around[0]:
            if role in ids:
                was = source.piece(ids[role])
                notes.append(
                    Note(
                        tensor="*",
                        what=f"tokenizer: {source.piece(around[0])} is "
                        f"written as {role}_token_id instead of {was}",
                        why="the tokenizer's post-processor adds it, "
                        "and llama.cpp adds the token with that id",
                    )
                )
            ids[role] = around[0]
    declared = source.config.get("add_bos_token")
    if isinstance(declared, bool) and declared != (len(before) == 1) and not source.is_sentencepiece:
        notes.append(
            Note(
                tensor="*",
                what=f"tokenizer: add_bos_token is {str(len(before) == 1).lower()}",
                why=f"{source.file.name}'s post-processor decides; tokenizer_config.json says "
                f"{str(declared).lower()}",
            )
        )
    size = len(vocabulary.tokens)
    kvs: Kvs = {ROLES[role]: (ids[role], U32) for role in ROLES if role in ids and 0 <= ids[role] < size}
    known = {text: number for number, text in enumerate(vocabulary.tokens)}
    by_text = {
        key: known[next(t for t in texts if t in known)]
        for key, texts in BY_TEXT.items()
        if set(texts) & known.keys()
    }
    ends = [
        n
        for n in _listed_eos(checkpoint)
        if n != ids.get("eos") and 0 <= n < size and vocabulary.tokens[n] not in ENDS
    ]
    # as separate end tokens: of a turn, of a message
    given = dict(zip((T.EOT_ID, T.EOM_ID), ends, strict=False))
    kvs |= {key: ({**by_text, **given}[key], U32) for key in BY_TEXT if key in by_text or key in given}
    if len(ends) > len(given):
        texts = [vocabulary.tokens[n] for n in ends[len(given) :]]
        why = (
            "a GGUF file has room for three end tokens, but "
            f"generation_config.json names {len(_listed_eos(checkpoint))}"
        )
        notes.append(
            Note(
                tensor="*",
                what=f"tokenizer: {', '.join(texts)} does not end generation in llama.cpp",
                why=why,
            )
        )
    kvs[T.ADD_BOS] = (len(before) == 1, BOOL)
    kvs[T.ADD_EOS] = (len(after) == 1, BOOL)
    return kvs, notes


def _role_id(checkpoint: Checkpoint, source: SourceTokenizer, role: str) -> int | None:
    """The text in tokenizer_config.json, then in special_tokens_map.json, then the id in config.json,
    generation_config.json."""
    for text in (
        token_text(source.config.get(f"{role}_token")),
        token_text(read_if_there(checkpoint.folder / "special_tokens_map.json").get(f"{role}_token")),
    ):
        if text is not None and (number := source.id_of(text)) is not None:
            return number
    nested = checkpoint.config.get("text_config")
    for config in (checkpoint.config, nested if isinstance(nested, dict) else {}, _generation(checkpoint)):
        value = config.get(f"{role}_token_id")
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int) and value >= 0:
            return value
    return None


def _listed_eos(checkpoint: Checkpoint) -> list[int]:
    """Every end token of generation_config.json, or where it names none, of config.json (of its text model's
    part)."""
    nested = checkpoint.config.get("text_config")
    for config in (_generation(checkpoint), checkpoint.config, nested if isinstance(nested, dict) else {}):
        value = config.get("eos_token_id")
        if value is not None and value != []:
            listed = value if isinstance(value, list) else [value]
            return list(dict.fromkeys(n for n in listed if isinstance(n, int) and not isinstance(n, bool)))
    return []


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    return read_generation_config(checkpoint.folder)


def added_around(source: SourceTokenizer) -> tuple[list[int], list[int]]:
    """Ids that the source puts before and after a text, seen on one."""
    plain, whole = source.encode("a", add_special=False), source.encode("a")
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def gguf_name(template: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", template)


def template_kvs(templates: dict[str, str]) -> Kvs:
    """Named templates go under names of letters, digits and underscores, as the GGUF specification has
    them."""
    kvs: Kvs = {}
    named = {gguf_name(name): text for name, text in templates.items() if name != "default"}
    for name, text in named.items():
        kvs[T.CHAT_TEMPLATE_N.format(name=name)] = (text, STRING)
    if named:
        kvs[T.CHAT_TEMPLATES] = (list(named), ARRAY)
    if "default" in templates:
        kvs[T.CHAT_TEMPLATE] = (templates["default"], STRING)
    return kvs
