"""The source's own tokenizer: its file, read by the library that defines it (tokenizers, or SentencePiece).

Not transformers' classes, which can deviate from the file they read; they are used only where there is no
such file (vocab.json and merges.txt alone, which hold no split pattern: the class is the definition).
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from quantize.checkpoint.library_folder import library_folder
from quantize.checkpoint.tokenizer_added import add_declared, added_to_pieces
from quantize.checkpoint.tokenizer_files import library, read_definition, read_if_there, token_id
from quantize.errors import BadInput
from quantize.hashes import sha256_file

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")


class SourceTokenizer:
    """Text -> token ids exactly as the file says. ``file`` is tokenizer.json, the SentencePiece model or
    vocab.json.

    ``backend`` is the ``tokenizers.Tokenizer`` or the ``SentencePieceProcessor``.
    """

    def __init__(self, folder: Path, file: Path, backend: Any):
        self.folder = folder
        self.file = file
        self.backend = backend

    @classmethod
    def open(cls, folder: Path) -> "SourceTokenizer":
        """Errors: BadInput where there is no tokenizer file, or it cannot be parsed."""
        path = folder / "tokenizer.json"
        if path.is_file():
            from tokenizers import Tokenizer

            definition = read_definition(path)
            with library(path, "not a tokenizer the tokenizers library can read"):
                backend = Tokenizer.from_file(str(path))
                backend.no_truncation()  # which was meant for training, as the padding
                backend.no_padding()
                add_declared(backend, folder)
            opened = cls(folder, path, backend)
            opened.definition = definition
            return opened
        for name in SENTENCEPIECE_FILES:
            path = folder / name
            if path.is_file():
                return cls(folder, path, open_sentencepiece(path))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return cls(folder, folder / "vocab.json", _from_class(folder))
        raise BadInput(
            f"{folder}: no tokenizer.json, no SentencePiece model, no vocab.json with merges.txt; "
            "copy the base model's tokenizer files there"
        )

    @property
    def is_sentencepiece(self) -> bool:
        return self.file.suffix == ".model"

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_if_there(self.folder / "tokenizer_config.json")

    @cached_property
    def definition(self) -> dict[str, Any]:
        """tokenizer.json as parsed (for a folder without one, what the tokenizers library would write). {}
        for SentencePiece.

        Errors: BadInput where it has no vocabulary model.
        """
        if self.is_sentencepiece:
            return {}
        data: dict[str, Any] = json.loads(self.backend.to_str())
        if not isinstance(data.get("model"), dict) or "vocab" not in data["model"]:
            raise BadInput(f"{self.file}: has no vocabulary (model.vocab); fetch it again")
        return data

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Tokens that are found in the text before anything else happens to it: text -> id."""
        if not self.is_sentencepiece:
            return {
                token.content: number for number, token in self.backend.get_added_tokens_decoder().items()
            }
        model = self.backend
        declared = {text: number for number, (text, _) in self._declared.items()}
        for number in range(model.vocab_size()):
            if model.is_control(number) or model.is_unknown(number):
                declared.setdefault(model.id_to_piece(number), number)
        return declared

    @cached_property
    def _declared(self) -> dict[int, tuple[str, bool]]:
        return added_to_pieces(self.folder, self.backend.vocab_size(), self._piece_id)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        if not self.is_sentencepiece:
            return 1 + max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)
        return max([self.backend.vocab_size(), *(number + 1 for number in self.added_tokens.values())])

    def piece(self, number: int) -> str | None:
        """The token's text as the file spells it, or None for an id that has none."""
        if not self.is_sentencepiece:
            text: str | None = self.backend.id_to_token(number)
            return text
        if number < self.backend.vocab_size():
            return str(self.backend.id_to_piece(number))
        return next((text for text, known in self.added_tokens.items() if known == number), None)

    def id_of(self, text: str) -> int | None:
        """The id of the token spelled ``text``, or None."""
        if not self.is_sentencepiece:
            number: int | None = self.backend.token_to_id(text)
            return number
        if text in self.added_tokens:
            return self.added_tokens[text]
        return self._piece_id(text)

    def _piece_id(self, text: str) -> int | None:
        known = int(self.backend.piece_to_id(text))
        return known if self.backend.id_to_piece(known) == text else None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids; with ``add_special`` the file's post-processor (or add_bos_token / add_eos_token) is
        applied.

        A SentencePiece model does not look for control tokens in the text; every loader of such a folder
        does, and so does this, for the model's own control pieces and for the added tokens that the folder
        declares.
        """
        if not self.is_sentencepiece:
            with library(self.file, "its rules fail on some text"):
                ids: list[int] = self.backend.encode(text, add_special_tokens=add_special).ids
            return ids
        ids = []
        added = self.added_tokens
        for part in self._added_pattern.split(text) if self._added_pattern else [text]:
            if part in added:
                ids.append(added[part])
            elif part:
                ids += self.backend.encode(part)
        if add_special and self.adds_bos and (bos := self._special("bos", self.backend.bos_id())) >= 0:
            ids.insert(0, bos)
        if add_special and self.adds_eos and (eos := self._special("eos", self.backend.eos_id())) >= 0:
            ids.append(eos)
        return ids

    @property
    def adds_bos(self) -> bool:
        """Of a SentencePiece folder: add_bos_token, true by default (as in Llama's class)."""
        return bool(self.config.get("add_bos_token", True))

    @property
    def adds_eos(self) -> bool:
        default = str(self.config.get("tokenizer_class", "")).startswith(("T5", "MT5", "Pegasus"))
        return bool(self.config.get("add_eos_token", default))

    @cached_property
    def _added_pattern(self) -> re.Pattern[str] | None:
        texts = sorted(filter(None, self.added_tokens), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, texts)) + ")") if texts else None

    def _special(self, kind: str, default: int) -> int:
        text = token_text(self.config.get(f"{kind}_token"))
        number = self.id_of(text) if text else None
        return default if number is None else number

    def decode(self, ids: list[int], skip_special: bool = False) -> str:
        if not self.is_sentencepiece:
            with library(self.file, "its rules fail on token ids"):
                return str(self.backend.decode(ids, skip_special_tokens=skip_special))
        pieces = self.backend.vocab_size()
        if skip_special:
            declared = self._declared
            ids = [
                n
                for n in ids
                if not (declared[n][1] if n in declared else n < pieces and self.backend.is_control(n))
            ]
        model, named, parts, run = self.backend, {n: t for t, n in self.added_tokens.items()}, [], list[int]()
        for number in [*ids, -1]:
            if number == -1 or number in named:
                parts.append(model.decode(run) if run else "")
                parts.append(named.get(number, ""))
                run = []
            elif (
                number < pieces
            ):  # rows of the embedding beyond the vocabulary have no text, as in the other library
                run.append(number)
        return "".join(parts)

    @cached_property
    def bos_id(self) -> int | None:
        """The id that ``add_special`` puts first, or None where it adds none."""
        with_special, without = self.encode("a"), self.encode("a", add_special=False)
        return (
            with_special[0] if len(with_special) > len(without) and with_special[:1] != without[:1] else None
        )

    @property
    def sha256(self) -> str:
        return sha256_file(self.file)


def open_sentencepiece(path: Path) -> Any:
    """Errors: BadInput where it is not a SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    with library(path, "not a SentencePiece model"):
        return SentencePieceProcessor(model_file=str(path))


def token_text(entry: Any) -> str | None:
    """The text of a token as tokenizer_config.json gives it: a string, or an object with ``content``."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) and text else None


def _from_class(folder: Path) -> Any:
    """vocab.json and merges.txt through the transformers class that the folder names. Errors: BadInput where
    there is none."""
    from transformers import AutoTokenizer

    vocabulary = read_if_there(folder / "vocab.json")
    for number in vocabulary.values():
        token_id(folder / "vocab.json", number, len(vocabulary))
    what = "vocab.json and merges.txt do not say how text is split, and transformers cannot tell"
    with library(folder, what), library_folder(folder, False) as seen:
        return AutoTokenizer.from_pretrained(str(seen), trust_remote_code=False).backend_tokenizer
