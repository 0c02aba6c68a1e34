"""A command's options as one object, from whose fields come the command line, a job's section and its schema.

No click in here: ``quantize.commands.options`` turns fields into options of the shell.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from quantize.errors import BadInput
from quantize.terminal import printable

Own = TypeVar("Own", bound="Options")


def _path_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, Path, dict)) else value


Text = Annotated[str, Field(min_length=1, max_length=4096)]
FileName = Annotated[Text, BeforeValidator(_path_as_text)]
Names = Annotated[list[FileName], BeforeValidator(as_list)]


@dataclass(frozen=True)
class Spelled:
    """How the command line says a field, where its name and type do not tell. ``default``: what it shows, and
    means, of a field that is None where nothing is said."""

    name: str = ""
    metavar: str = ""
    default: Any = None
    path: Literal["", "file", "folder"] = ""


class Options(BaseModel):
    """Strict and frozen. Each field's description is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls: type[Own], **values: Any) -> Own:
        """As the constructor. Errors: BadInput, one line, in the words of the command line."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise BadInput(_explain(cls, error.errors()[0])) from None

    def arguments(self) -> list[str]:
        """What differs from the defaults, as the command line says it."""
        made: list[str] = []
        for name, field in type(self).model_fields.items():
            value, flag = getattr(self, name), flag_of(name, field)
            if value == field.default:
                continue
            if isinstance(value, bool):
                made.append(flag if value else flag.replace("--", "--no-", 1))
            elif isinstance(value, (list, tuple)):
                made += [flag, ",".join(map(str, value))]
            else:
                made += [flag, str(value)]
        return made


def spelled(field: FieldInfo) -> Spelled:
    return next((each for each in field.metadata if isinstance(each, Spelled)), Spelled())


def flag_of(name: str, field: FieldInfo) -> str:
    return spelled(field).name or "--" + name.replace("_", "-")


def plain_type(annotation: Any) -> Any:
    """What a field holds where it holds something: without None and without what pydantic checks of it."""
    while True:
        inside = [each for each in get_args(annotation) if each is not type(None)]
        if hasattr(annotation, "__metadata__") or type(None) in get_args(annotation):
            annotation = inside[0]
        else:
            return annotation


def _explain(model: type[Options], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return f"no option {printable(name, 100)!r}{_did_you_mean(name, list(model.model_fields))}"
    where = flag_of(name, model.model_fields[name]) if name in model.model_fields else name
    given = printable(repr(error["input"]), 200)
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "should be")
    if error["type"] == "literal_error":
        known = re.findall("'([^']*)'", error["ctx"]["expected"])
        between = " or " if len(known) == 2 else ", "
        message = f"expected {between.join(known)}{_did_you_mean(str(error['input']), known)}"
    return f"{where} {given}: {message}"


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" (did you mean {close[0]}?)" if close else ""
