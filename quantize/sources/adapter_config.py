"""adapter_config.json of a PEFT LoRA, typed: what it says about the weights, or why they cannot be merged.

Source: peft's LoraConfig, and ``tuners/tuners_utils.py`` for what a name in ``modules_to_save`` matches.
"""

import math
import re
from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from quantize.errors import BadInput, Unsupported
from quantize.files import check_links, read_json
from quantize.terminal import printable

CONFIG = "adapter_config.json"
# Settings of LoraConfig that change what the weights mean, and are not merged here.
REFUSED = {
    "target_parameters": "LoRA on bare parameters (fused experts)",
    "lora_bias": "LoRA with its own bias",
    "use_qalora": "QALoRA", "alora_invocation_tokens": "an activated LoRA, which cannot be merged",
    "megatron_config": "Megatron layers", "trainable_token_indices": "single trained tokens",
    "layer_replication": "replicated layers", "arrow_config": "Arrow routing", "velora_config": "VeLoRA",
    "use_bdlora": "BD-LoRA", "monteclora_config": "MonteCLoRA", "kasa_config": "KaSA",
}  # fmt: skip
# Ways to start that change the base too: without them the base on disk is not the one that was trained on.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
MAX_PATTERNS = 20_000  # peft writes one a module
MAX_PATTERN_CHARACTERS = 512
# of a pattern: the name of a module, of some 60 characters, is then decided in about 100,000 steps
MAX_REPEATS = 3
#: a repeated group, a back reference: what makes a pattern take exponential time
_ENDLESS = re.compile(r"\)[*+{]|\\[1-9]|\(\?P=|\(\?\(")

Number = StrictInt | StrictFloat


class LoraConfig(BaseModel):
    """What counts for a merge; the rest of the file is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    r: Number = Field(gt=0, le=2**31, allow_inf_nan=False)
    lora_alpha: Number = Field(gt=0, le=2**31, allow_inf_nan=False)
    rank_pattern: dict[str, Number] | None = Field(default=None, max_length=MAX_PATTERNS)
    alpha_pattern: dict[str, Number] | None = Field(default=None, max_length=MAX_PATTERNS)
    use_rslora: StrictBool | None = None
    fan_in_fan_out: StrictBool | None = None
    ensure_weight_tying: StrictBool | None = None
    modules_to_save: list[StrictStr] | None = None
    base_model_name_or_path: StrictStr | None = None

    def scaling(self, module: str) -> float:
        """Errors: BadInput where a pattern is not a regular expression, or one that could run for ever."""
        rank = _pattern("rank_pattern", self.rank_pattern, module, self.r)
        alpha = _pattern("alpha_pattern", self.alpha_pattern, module, self.lora_alpha)
        return float(alpha / math.sqrt(rank) if self.use_rslora else alpha / rank)

    def trains_whole(self, module: str) -> bool:
        """Whether the module, or one that contains it, has its own trained copy (``modules_to_save``)."""
        parts = module.split(".")
        above = [".".join(parts[: count + 1]) for count in range(len(parts))]
        return any(name.endswith(wanted) for wanted in self.modules_to_save or () for name in above)

    @property
    def made_for(self) -> str:
        """For messages."""
        return (
            f"; it says it was made for {printable(self.base_model_name_or_path, 200)}"
            if self.base_model_name_or_path
            else ""
        )


def read_adapter_config(folder: Path) -> LoraConfig:
    """Errors: BadInput where there is none, or a field is not what peft writes; Unsupported for what cannot
    be merged."""
    if folder.is_dir():
        check_links(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise BadInput(f"{folder}: no {CONFIG}, so not a PEFT adapter; give the folder that holds it")
    data = read_json(path)
    if data.get("peft_type") != "LORA":
        kind = printable(data.get("peft_type"), 100)
        raise Unsupported(f"{folder}: an adapter of type {kind}; only LORA can be merged")
    for key, what in REFUSED.items():
        if data.get(key):
            raise Unsupported(f"{folder}: {key} is set: {what}; merge it with peft first (merge_and_unload)")
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(BASE_CHANGING):
        raise Unsupported(
            f"{folder}: init_lora_weights is {printable(start, 100)}, which changed the base in training; "
            "save it as an ordinary LoRA with peft first"
        )
    try:
        return LoraConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise BadInput(
            f"{path}: {key} is {printable(repr(data.get(key)), 100)}: {_expected(key)} was expected"
        ) from None


def _expected(key: str) -> str:
    if key in ("r", "lora_alpha"):
        return "a positive number"
    if key.endswith("_pattern"):
        return "a mapping of module names to numbers"
    return {"modules_to_save": "a list of module names", "base_model_name_or_path": "a text"}.get(
        key, "true or false"
    )


def _pattern(field: str, patterns: dict[str, Number] | None, module: str, default: Number) -> Number:
    for key, value in (patterns or {}).items():
        if value <= 0 or not math.isfinite(value) or value > 2**31:
            raise BadInput(
                f"{CONFIG}: {field}: {printable(key, 100)} is {value!r}, expected a positive number"
            )
        if _compiled(key).match(module):
            return value
    return default


def _compiled(key: str) -> "re.Pattern[str]":
    """peft's reading of a key: a module's name, whole or its last parts, in which it takes regular
    expressions."""
    if (
        len(key) > MAX_PATTERN_CHARACTERS
        or len(re.findall("[*+{]", key)) > MAX_REPEATS
        or _ENDLESS.search(key)
    ):
        raise BadInput(
            f"{CONFIG}: pattern {printable(key, 100)!r} could run forever; list the modules' names"
        )
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError):
        raise BadInput(f"{CONFIG}: pattern {printable(key, 100)!r} is not a regular expression") from None
