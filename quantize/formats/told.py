"""What ``quantization_config`` tells of packed weights, typed: a stranger may have written it."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from quantize.errors import BadInput
from quantize.formats.packed import SOURCES
from quantize.terminal import printable

M = TypeVar("M", bound=BaseModel)
Bits = Literal[2, 3, 4, 8]
GroupSize = Annotated[int, Field(ge=-1, le=1 << 24)]
Axis = Annotated[int, Field(ge=1, le=1 << 40)]


class Rule(BaseModel):
    """One of ``dynamic``; nothing: as all others."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    bits: Bits | None = None
    group_size: GroupSize | None = None
    sym: StrictBool | None = None


class Meta(BaseModel):
    """``sources``: shapes of the source's tensors that are no matrix (outputs, inputs)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sources: dict[str, Annotated[list[Axis], Field(min_length=1, max_length=8)]] = {}


class Told(BaseModel):
    """``quantization_config`` of GPTQ and AWQ, as far as it is read here."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_method: Literal["gptq", "awq"]
    checkpoint_format: StrictStr | None = None
    format: StrictStr | None = None
    version: StrictStr | None = None
    bits: Bits = 4
    group_size: GroupSize = -1
    sym: StrictBool = True
    zero_point: StrictBool = True
    dynamic: dict[str, Rule | None] | None = None


def read_told(folder: Path, config: dict[str, Any]) -> Told:
    """Errors: BadInput, with the first field that is not what loaders write."""
    return _read(folder, Told, config.get("quantization_config") or {}, "quantization_config")


def told_sources(folder: Path, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of ``meta.sources``, of any format. Errors: BadInput where they are no shapes."""
    meta = (config.get("quantization_config") or {}).get("meta")
    if not isinstance(meta, dict) or not meta.get(SOURCES):
        return {}
    found = _read(folder, Meta, {"sources": meta[SOURCES]}, "quantization_config.meta")
    return {name: tuple(shape) for name, shape in found.sources.items()}


def _read(folder: Path, model: type[M], said: Any, where: str) -> M:
    try:
        return model.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in (where, *first["loc"]))
        raise BadInput(
            f"{folder}: config.json: {printable(field, 200)} is {printable(repr(first['input']), 60)}: "
            f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        ) from None
