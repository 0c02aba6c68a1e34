"""Which tokens begin and end a text, as in lm-eval: by what the model's tokenizer calls BOS and EOS, and, for
the end of generation, by all that generation_config.json lists.

Not by config.json, which may name others (Qwen2.5's ``bos_token_id``), or, for a vision model, none. Source:
lm_eval's HFLM (``prefix_token_id``, ``eot_token_id``) and transformers' ``generate``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantize.chat.templates import special_tokens
from quantize.checkpoint.tokenizer import SourceTokenizer
from quantize.files import inside, read_json

NAMES = frozenset({"bos_token", "eos_token"})


@dataclass(frozen=True)
class SpecialIds:
    """``bos`` and ``eos``: the tokenizer's, None where it has none. ``stops``: every id that ends
    generation."""

    bos: int | None = None
    eos: int | None = None
    stops: frozenset[int] = field(default=frozenset())

    @property
    def prefix(self) -> int | None:
        """What a document begins with."""
        return self.bos if self.bos is not None else self.eos

    @property
    def ends(self) -> frozenset[int]:
        return self.stops if self.eos is None else self.stops | {self.eos}


def of_source(tokenizer: SourceTokenizer, folders: Sequence[Path]) -> SpecialIds:
    """``folders``: of the model, in order of precedence, which say what ends generation; the last resort for
    a tokenizer whose files name neither token."""
    texts = special_tokens(tokenizer.folder, NAMES)
    bos, eos = (
        (tokenizer.id_of(texts[name]) if name in texts else None) for name in ("bos_token", "eos_token")
    )
    lists = [ids for folder in (*folders, tokenizer.folder) if (ids := _stops_of(folder)) is not None]
    stops = lists[0] if lists else ()
    if bos is None and eos is None:
        bos = next(
            (
                ids[0]
                for folder in (*folders, tokenizer.folder)
                if (ids := _ids(_config(folder), "bos_token_id"))
            ),
            None,
        )
        eos = stops[0] if stops else None
    return SpecialIds(bos, eos, frozenset(stops))


def _stops_of(folder: Path) -> tuple[int, ...] | None:
    """Of generation_config.json, and only where there is none, of config.json; None where neither lies there
    or says anything."""
    if (folder / "generation_config.json").is_file():
        return _ids(read_json(inside(folder, "generation_config.json")), "eos_token_id")
    return _ids(_config(folder), "eos_token_id") or None


def _config(folder: Path) -> dict[str, Any]:
    """config.json, what it says of the text model put under what it says of the whole."""
    config = read_json(inside(folder, "config.json")) if (folder / "config.json").is_file() else {}
    text = config.get("text_config")
    return {
        **(text if isinstance(text, dict) else {}),
        **{key: value for key, value in config.items() if value is not None},
    }


def _ids(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = config.get(name)
    values = value if isinstance(value, list) else [value]
    return tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0)
