"""Kinds of values in a results file, which anybody may have written: typed, finite, bounded."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

MAX_SAMPLES = 1_000_000
#: what statistics can square and sum; a perplexity beyond it is as good as none
LARGEST = 1e100


def _within_reach(value: float | None) -> float | None:
    return None if value is None or abs(value) > LARGEST else value if abs(value) > 1 / LARGEST else 0.0


def _both_within_reach(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ends is None or max(map(abs, ends)) > LARGEST else ends


Word = Annotated[str, Field(max_length=4096)]
Whole = Annotated[int, Field(ge=0, le=2**60)]
Real = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
#: None where it is beyond ``LARGEST``
Measured = Annotated[_Finite | None, AfterValidator(_within_reach)]
Interval = Annotated[
    tuple[_Finite, _Finite] | None,
    BeforeValidator(lambda value: value or None),
    AfterValidator(_both_within_reach),
]
Samples = Annotated[
    tuple[Real, ...], Field(max_length=MAX_SAMPLES), BeforeValidator(lambda value: value or ())
]
_Pair = Annotated[list[Real], Field(min_length=2, max_length=2)]


class _Known(BaseModel):
    """The part of a mapping that reports read; the rest is kept unchanged."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Bucket(_Known):
    """Divergence on the tokens whose likeliest one had a probability ``from`` .. ``to``."""

    low: Real = Field(alias="from")
    to: Real
    tokens: Whole
    kl_mean: Real = 0
    top1_agreement: Real = 0


class _Continuation(_Known):
    prompt: str
    text: str
    ids: list[int] | None = None


class _Paired(_Known):
    difference: Real
    interval: _Pair | None = None
    p_mcnemar: Real | None = None


class _Detail(_Known):
    buckets: list[_Bucket] = []
    items: list[_Continuation] = []
    remarks: list[str] = []
    vs_reference: _Paired | None = None
    chunk_tokens: Annotated[list[Real], Field(max_length=MAX_SAMPLES)] | None = None
    p_value: Real | None = None
    typed: str = ""


class _Environment(_Known):
    text_sha256: Word | None = None
    ids_sha256: Word | None = None
    task_sha256: Word | None = None
    items_sha256: Word | None = None
    load_average: Real | None = None
    cores_usable: Real | None = None


class _Note(_Known):
    tensor: str
    what: str
    why: str


def _as(model: type[BaseModel]) -> AfterValidator:
    def check(value: dict[str, Any]) -> dict[str, Any]:
        model.model_validate(value)
        return value

    return AfterValidator(check)


Detail = Annotated[dict[str, Any], _as(_Detail)]
Environment = Annotated[dict[str, Any], _as(_Environment)]
Note = Annotated[dict[str, str], _as(_Note)]


def cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    """Every text in a JSON value through ``clean``."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return value if value and isinstance(value[0], float) else [cleaned(item, clean) for item in value]
    if isinstance(value, dict):
        return {clean(key): cleaned(item, clean) for key, item in value.items()}
    return value
