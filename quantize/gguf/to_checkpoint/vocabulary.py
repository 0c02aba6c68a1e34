"""A GGUF's ``tokenizer.ggml.*`` metadata, checked."""

from typing import Any

from gguf import TokenType

from quantize.errors import BadInput
from quantize.gguf.container.reader import GgufFile
from quantize.gguf.tokenizer.vocabulary import SPECIAL_SCORE


class Vocabulary:
    """``tokenizer.ggml.*`` of one file, checked. Errors: BadInput."""

    def __init__(self, file: GgufFile):
        self.file = file
        self.model = str(self.find("model") or "")
        self.tokens: list[str] = self._list("tokens", str)
        self._demand_text("tokens", self.tokens)
        count = len(self.tokens)
        self.types: list[int] = self._list("token_type", int, count) or [int(TokenType.NORMAL)] * count

    def find(self, key: str) -> Any:
        return self.file.kvs.get(f"tokenizer.ggml.{key}")

    def _list(self, key: str, kind: type, count: int | None = None) -> list[Any]:
        value = self.find(key)
        if value is None and count is not None:
            return []
        if (
            not isinstance(value, list)
            or not all(isinstance(item, kind) for item in value)
            or (count not in (None, len(value)))
        ):
            raise BadInput(
                f"{self.file.path}: tokenizer.ggml.{key}: expected "
                f"a list of {count or 'some'} {kind.__name__}"
            )
        return value

    def _demand_text(self, key: str, texts: list[str]) -> None:
        try:
            "\n".join(texts).encode()
        except UnicodeEncodeError:
            raise BadInput(
                f"{self.file.path}: tokenizer.ggml.{key}: not UTF-8; fetch the file again"
            ) from None

    def scores(self) -> list[float]:
        return self._list("scores", float, len(self.tokens)) or [0.0] * len(self.tokens)

    def merges(self) -> list[str]:
        merges: list[str] = self._list("merges", str)
        self._demand_text("merges", merges)
        return merges

    def id_of(self, role: str) -> int | None:
        number = self.find(f"{role}_token_id")
        return number if isinstance(number, int) and 0 <= number < len(self.tokens) else None

    def added(self) -> dict[int, TokenType]:
        """Ids of control and user-defined tokens."""
        wanted = (TokenType.CONTROL, TokenType.USER_DEFINED)
        found = {number: TokenType(kind) for number, kind in enumerate(self.types) if kind in wanted}
        if self.model != "llama":
            return found
        # A token with its own score was in the SentencePiece model itself, and goes back there.
        scores = self.scores()
        return {number: kind for number, kind in found.items() if scores[number] == SPECIAL_SCORE}

    def unused(self, number: int) -> bool:
        return self.types[number] == TokenType.UNUSED and self.tokens[number] == f"[PAD{number}]"
