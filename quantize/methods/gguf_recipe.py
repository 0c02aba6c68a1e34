"""What can be asked of a GGUF file."""

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from quantize.errors import BadInput
from quantize.gguf.importance.file import ImportanceMatrix, read_imatrix
from quantize.hashes import sha256_file
from quantize.kernels.block_types import FILE_TYPES, TENSOR_TYPES
from quantize.recipe import AUTO, Recipe

#: short spellings; the other types of ``quantize.kernels.block_types.FILE_TYPES`` need an importance matrix
PRESET_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1",
    "q4_0",
    "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "mxfp4_moe",
)  # fmt: skip


class GgufRecipe(Recipe):
    """``type`` is the mixture, in llama-quantize's spelling. ``tensor_types``: ``regex=type`` overrides, the
    first match wins.

    ``via``: round the weights to this type first, as a detour through a file of that type does (auto: no
    detour). ``imatrix``: file of an importance matrix; ``imatrix_sha256`` is filled in from it. Or ``auto``:
    computed from the calibration text.
    """

    contents: ClassVar[dict[str, str]] = {"imatrix": "imatrix_sha256"}

    presets: ClassVar[dict[str, dict[str, Any]]] = {f"gguf-{name}": {"type": name} for name in PRESET_TYPES}

    method: Literal["gguf"] = "gguf"
    type: str = "q4_k_m"
    via: Literal["auto", "f32", "f16", "bf16"] = "auto"
    tensor_types: tuple[str, ...] = ()
    output_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    pre_tokenizer: str | None = None
    split_max_bytes: int | None = Field(default=None, ge=1 << 16)
    quantized_by: str | None = "quantwright"
    imatrix: str | None = None
    imatrix_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="before")
    @classmethod
    def _content(cls, values: Any) -> Any:
        """A recipe read from a manifest, whose file may be gone, has its sha256 already."""
        if isinstance(values, dict) and (path := values.get("imatrix")) and not values.get("imatrix_sha256"):
            if str(path).lower() == AUTO:
                return {**values, "imatrix": AUTO}
            if not Path(path).is_file():
                raise BadInput(
                    f"imatrix {path}: no such file; `quantwright imatrix` makes one, and imatrix=auto "
                    "computes it from the calibration text"
                )
            values = {**values, "imatrix": str(path), "imatrix_sha256": sha256_file(Path(path))}
        return values

    @field_validator("type")
    @classmethod
    def _known_file_type(cls, value: str) -> str:
        if value.lower() not in FILE_TYPES:
            raise ValueError(f"{value!r} is not a GGUF file type; known: {', '.join(FILE_TYPES)}")
        return value.lower()

    @field_validator("output_type", "token_embedding_type")
    @classmethod
    def _known_type(cls, value: str | None) -> str | None:
        return value if value is None else _tensor_type(value)

    @field_validator("tensor_types", mode="before")
    @classmethod
    def _overrides(cls, value: Any) -> Any:
        entries = [value] if isinstance(value, str) else list(value)
        out = []
        for entry in entries:
            pattern, equals, kind = str(entry).rpartition("=")
            if not equals or not pattern:
                raise ValueError(f"{entry!r}: expected REGEX=TYPE, e.g. ffn_down=q6_k")
            out.append(f"{pattern}={_tensor_type(kind)}")
        return tuple(out)

    @property
    def calibrated(self) -> bool:
        return self.imatrix == AUTO and not self.imatrix_sha256

    @property
    def arguments(self) -> list[str]:
        # Regular expressions may hold commas, and a path anything: neither survives a short spelling.
        drop: dict[str, Any] = {} if self.calibrated else {"imatrix": None, "imatrix_sha256": None}
        plain = self.model_copy(update={"tensor_types": (), **drop})
        types = [argument for entry in self.tensor_types for argument in ("--tensor-type", entry)]
        return [
            "--to",
            plain.short,
            *types,
            *[argument for path in self.files for argument in ("--imatrix", str(path))],
        ]

    def importance(self) -> ImportanceMatrix | None:
        """Of the file. Errors: BadInput where that is not an importance matrix, or not the one that it
        was."""
        return _read(self.imatrix, self.imatrix_sha256) if self.imatrix and self.imatrix_sha256 else None


@lru_cache(maxsize=1)
def _read(path: str, sha256: str) -> ImportanceMatrix:
    matrix = read_imatrix(path)
    if sha256_file(Path(path)) != sha256:
        raise BadInput(
            f"{path}: is another importance matrix than the recipe "
            f"names (sha256 {sha256[:12]}...); give that one"
        )
    return matrix


def _tensor_type(name: str) -> str:
    if name.lower() not in TENSOR_TYPES:
        raise ValueError(f"{name!r} is not a tensor type; known: {', '.join(TENSOR_TYPES)}")
    return name.lower()
