"""The source's own tokenizer: its file, read by the library that defines it (tokenizers, or SentencePiece).

Not transformers' classes, which can depart from the file they are given.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from quantize.checkpoint import sha256_file
from quantize.errors import BadInput


class SourceTokenizer:
    """Text -> token ids exactly as the file says. ``file`` is tokenizer.json or the SentencePiece model that was read."""

    def __init__(self, folder: Path, file: Path, backend: Any):
        self.folder = folder
        self.file = file
        self._backend = backend

    @classmethod
    def open(cls, folder: Path) -> "SourceTokenizer":
        """Errors: BadInput where there is no tokenizer file, or it cannot be parsed."""
        path = folder / "tokenizer.json"
        if path.is_file():
            from tokenizers import Tokenizer

            try:
                return cls(folder, path, Tokenizer.from_file(str(path)))
            except Exception as error:  # the library raises bare Exception
                raise BadInput(f"{path}: not a tokenizer the tokenizers library can read ({error}); fetch it again") from None
        for name in ("tokenizer.model", "spiece.model"):
            path = folder / name
            if path.is_file():
                from sentencepiece import SentencePieceProcessor

                try:
                    return cls(folder, path, SentencePieceProcessor(model_file=str(path)))
                except RuntimeError as error:
                    raise BadInput(f"{path}: not a SentencePiece model ({error}); fetch it again") from None
        raise BadInput(f"{folder}: no tokenizer.json and no SentencePiece model; copy the base model's tokenizer files there")

    @property
    def is_sentencepiece(self) -> bool:
        return self.file.suffix == ".model"

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.folder / "tokenizer_config.json"
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return data

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids; with ``add_special`` the file's post-processor (or add_bos_token / add_eos_token) has its say."""
        if not self.is_sentencepiece:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special).ids
            return ids
        ids = list(self._backend.encode(text))
        if add_special and self.config.get("add_bos_token", True) and self._backend.bos_id() >= 0:
            ids.insert(0, self._backend.bos_id())
        if add_special and self.config.get("add_eos_token", False) and self._backend.eos_id() >= 0:
            ids.append(self._backend.eos_id())
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids) if self.is_sentencepiece else self._backend.decode(ids, skip_special_tokens=False))

    @cached_property
    def bos_id(self) -> int | None:
        """The id that ``add_special`` puts first, or None where it adds none."""
        with_special, without = self.encode("a"), self.encode("a", add_special=False)
        return with_special[0] if len(with_special) > len(without) and with_special[0] != without[0] else None

    @property
    def sha256(self) -> str:
        return sha256_file(self.file)
