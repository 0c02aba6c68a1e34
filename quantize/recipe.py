"""What is done to the weights: only what changes the bytes. How it is run (device, threads) is
``RunOptions``.

A recipe is written short (``gptq-int4``, ``gguf-q4_k_m``, ``gptq:bits=3,group_size=64``,
``bnb-nf4:double_quant=true``) or as YAML (``{method: gptq, bits: 4}``); both parse to the same frozen object
with the same digest.
"""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantize.dtypes import DENSE
from quantize.errors import BadInput
from quantize.packages import version

AUTO = "auto"


class Recipe(BaseModel):
    """Base of every method's recipe. Subclasses fix ``method`` to a Literal and add their parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    #: Parameters that name a file -> those that hold its sha256, which represents it in the digest.
    contents: ClassVar[dict[str, str]] = {}
    #: Short spelling -> parameters, without ``method``.
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    #: Parameters that came after the first release -> the value with which they are left out: what says
    #: nothing new keeps its digest.
    later: ClassVar[dict[str, Any]] = {}
    #: What a parameter's ``auto`` stands for in the digest: the value that it takes wherever that one fits,
    #: where both make the same bytes. Where it does not fit, only ``auto`` makes anything.
    automatic: ClassVar[dict[str, Any]] = {}

    @property
    def calibrated(self) -> bool:
        """Whether calibration text is looked at."""
        return False

    @property
    def canonical(self) -> dict[str, Any]:
        """Files by their names only: the path of a folder on this machine changes nothing."""
        values = self.model_dump(mode="json")
        values = {k: v for k, v in values.items() if k not in self.later or v != self.later[k]}
        for name, content in self.contents.items():
            path, sha256 = values.pop(name), values.pop(content)
            if path and not sha256:  # no file: a word that says how the contents are made
                values[name] = path
            elif path:
                values |= {name: Path(path).name, content: sha256}
        return values

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON, without the names of files."""
        named = {name for name, content in self.contents.items() if getattr(self, content)}
        values = {key: value for key, value in self.canonical.items() if key not in named}
        values |= {key: known for key, known in self.automatic.items() if values.get(key) == AUTO}
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def changed(self, values: dict[str, Any]) -> "Recipe":
        """The same with other values of some parameters. Errors: BadInput, as ``parse_recipe``."""
        return validated(type(self), {**self.model_dump(), **values}, self.short)

    @property
    def files(self) -> tuple[Path, ...]:
        """Files whose contents the recipe depends on."""
        named = (getattr(self, name) for name, content in self.contents.items() if getattr(self, content))
        return tuple(Path(path).absolute() for path in named)

    @property
    def arguments(self) -> list[str]:
        """Options of `quantwright convert` that make this recipe, from any working folder."""
        return ["--to", self.short]

    @property
    def short(self) -> str:
        """The shortest spelling that parses back to this recipe (files by their names only: in their own
        folder)."""
        mine, best = self.canonical, ""
        for name, params in (self.presets or {self.method: {}}).items():
            base = type(self).model_validate(params).canonical
            changed = {k: v for k, v in mine.items() if base.get(k) != v and k not in self.contents.values()}
            spelled = (
                name
                + (":" if changed else "")
                + ",".join(f"{key}={_spell(value)}" for key, value in changed.items())
            )
            if not best or len(spelled) < len(best):
                best = spelled
        return best

    @property
    def slug(self) -> str:
        """``short`` as a folder name; the contents of files in it tell files of one name apart."""
        hashes = [
            str(self.canonical[content])[:8]
            for content in self.contents.values()
            if content in self.canonical
        ]
        return "".join(c if c.isalnum() or c in "-_." else "-" for c in "-".join([self.short, *hashes]))


class DenseRecipe(Recipe):
    """The checkpoint unquantized, in one dtype: the baseline."""

    method: Literal["dense"] = "dense"
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    presets: ClassVar[dict[str, dict[str, Any]]] = {name: {"dtype": name} for name in DENSE}


class CalibrationOptions(BaseModel):
    """Which text calibrates. ``source``: a text file, a folder, a Hub dataset (``org/name[:config]`` or
    ``org/name:split:column``), ``stdlib`` (built in), ``self`` (the model's own samples), ``auto`` (these
    where they can be had), or several with weights, ``wiki.txt*0.5,self*0.5``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = "auto"
    tokens: int = Field(default=32_768, ge=128, le=2**40)
    sequence_length: int = Field(default=512, ge=32, le=2**24)
    seed: int = Field(default=0, ge=0, lt=2**32)


class RunOptions(BaseModel):
    """How a step runs. Recorded; ``device`` and ``threads`` are part of a step's key, never of a recipe's
    digest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    memory_bytes: int | None = None
    scratch: Path | None = None
    trust_remote_code: bool = False
    allow_tokenizer_mismatch: bool = False
    progress: bool = True

    @property
    def resolved_device(self) -> str:
        if self.device != "auto":
            return self.device
        if (version("torch") or "").endswith("+cpu"):  # known without the second that importing it takes
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def resolved_threads(self) -> int:
        import os

        return self.threads or len(os.sched_getaffinity(0))


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ";".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def validated(cls: type[Recipe], values: dict[str, Any], spelled: str) -> Recipe:
    """Errors: BadInput that names the first parameter that is wrong."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "recipe"
        hint = did_you_mean(key, cls.model_fields) if first["type"] == "extra_forbidden" else ""
        message = "is not a parameter of this method" if first["type"] == "extra_forbidden" else first["msg"]
        message = message.removeprefix("Value error, ")
        raise BadInput(f"recipe {spelled!r}: {key}: {message[0].lower()}{message[1:]}{hint}") from None


def did_you_mean(text: str, known: Any) -> str:
    """Up to three of ``known`` that look like ``text``, as the end of a message; empty where none does."""
    close = difflib.get_close_matches(text, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
