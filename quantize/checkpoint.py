"""A Hugging Face checkpoint as it lies on disk: config, tensor headers, tokenizer files. Knows nothing of quantization.

Opening reads the config and the safetensors headers only (a 70 B checkpoint opens in well under a second); a tensor's data
is read when asked for. Nothing from a checkpoint is executed: no pickle, no remote code.
"""

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.files import read_json

if TYPE_CHECKING:
    import torch

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself

# Files that make up a tokenizer, and the other small files that belong to a model as served.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "spiece.model", "vocab.txt",
)  # fmt: skip
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: ``offset`` counts from the start of ``file``; ``dtype`` is safetensors' name for it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    size_bytes: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def read_safetensors_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file. Errors: BadInput where the file is truncated or its header inconsistent."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BadInput(f"{path}: truncated: {size} bytes, not even a safetensors header; fetch the file again")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise BadInput(
                f"{path}: truncated or not safetensors: header of {length} bytes in a file of {size}; fetch the file again"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise BadInput(f"{path}: its safetensors header is not JSON; fetch the file again") from None
    if not isinstance(header, dict):
        raise BadInput(f"{path}: its safetensors header is not an object; fetch the file again")
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"{path}: malformed header entry for tensor {name}; fetch the file again") from None
        if dtype in DTYPE_BYTES and math.prod(shape) * DTYPE_BYTES[dtype] != end - begin:
            raise BadInput(f"{path}: tensor {name} of shape {list(shape)} {dtype} does not fill its {end - begin} bytes")
        if begin < 0 or 8 + length + end > size:
            raise BadInput(
                f"{path}: truncated: tensor {name} ends at byte {8 + length + end}, the file has {size}; fetch the file again"
            )
        tensors[name] = TensorInfo(name, shape, dtype, path, 8 + length + begin, end - begin)
    return tensors


def bfloat16_to_float32(raw: np.ndarray) -> np.ndarray:
    """uint16 bit patterns of bfloat16 -> float32, exact."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True)
class Checkpoint:
    """``source`` is the path or Hub id as the person typed it; ``revision`` the pinned commit of a Hub model, else None."""

    folder: Path
    source: str
    revision: str | None
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    trust_remote_code: bool = False
    _digests: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, model: str | Path, *, trust_remote_code: bool = False, tokenizer: bool = True) -> "Checkpoint":
        """Open a local folder (tried first) or a Hub id ``org/name[@revision]``.

        Errors: BadInput for anything wrong with what lies there; Unsupported for a checkpoint that is quantized already or
        needs remote code; StepFailed where the Hub cannot be reached.
        """
        from quantize.hub import resolve_model

        folder, revision = resolve_model(str(model))
        config = _read_config(folder)
        if "quantization_config" in config:
            method = (config["quantization_config"] or {}).get("quant_method", "unknown")
            raise Unsupported(
                f"{model}: already quantized ({method}); quantize from the original full-precision checkpoint instead"
            )
        if "auto_map" in config and not trust_remote_code and not _known_to_transformers(config):
            raise Unsupported(
                f"{model}: its architecture needs code from the checkpoint (auto_map in config.json); "
                "nothing from a checkpoint is executed unless you pass --trust-remote-code"
            )
        tensors = _read_tensor_index(folder)
        for info in tensors.values():
            if info.dtype not in FLOAT_DTYPES and info.parameters > 1 and info.dtype.startswith(("F8", "U8", "I8")):
                raise Unsupported(
                    f"{model}: tensor {info.name} is stored as {info.dtype}, so the checkpoint is already quantized; "
                    "start from a full-precision one"
                )
        checkpoint = cls(folder, str(model), revision, config, tensors, trust_remote_code)
        if tokenizer and not any((folder / name).is_file() for name in VOCABULARY_FILES):
            raise BadInput(
                f"{model}: no tokenizer (expected tokenizer.json or tokenizer.model in {folder}); "
                "copy the tokenizer files of the base model into the folder"
            )
        return checkpoint

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or ["unknown"])[0])

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def name(self) -> str:
        """Last part of the id or folder, for file names and tables; a folder of the Hub's cache goes by its model's id."""
        cached = re.search(r"/models--(?:[^/]+--)?([^/]+)/snapshots/[0-9a-f]{40}$", self.folder.absolute().as_posix())
        return cached[1] if cached else self.source.split("@")[0].rstrip("/").split("/")[-1] or self.folder.resolve().name

    @cached_property
    def parameters(self) -> int:
        """Number of weights stored, a tied embedding counted once."""
        return sum(info.parameters for info in self.tensors.values())

    @cached_property
    def dtype(self) -> str:
        """The dtype that most weights are stored in, as safetensors names it."""
        sizes: dict[str, int] = {}
        for info in self.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.parameters
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def tokenizer_files(self) -> list[Path]:
        return [self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()]

    @property
    def companion_files(self) -> list[Path]:
        """Small files served beside the weights, copied unchanged into HF-format artifacts."""
        extra = [self.folder / "generation_config.json"]
        return self.tokenizer_files + [path for path in extra if path.is_file()]

    @property
    def chat_template(self) -> str | None:
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        config = self.folder / "tokenizer_config.json"
        if config.is_file():
            template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
            if isinstance(template, str):
                return template
            if isinstance(template, list):  # several named ones
                named = {entry["name"]: entry["template"] for entry in template}
                return named.get("default") or next(iter(named.values()), None)
        return None

    def read(self, name: str) -> np.ndarray:
        """Raw data of one tensor, BF16 as uint16 bit patterns. Memory-mapped: nothing is copied until used."""
        info = self.tensors[name]
        numpy_dtype = {
            "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32,
            "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
        }[info.dtype]  # fmt: skip
        if info.parameters == 0:
            return np.empty(info.shape, numpy_dtype)
        return np.memmap(info.file, dtype=numpy_dtype, mode="r", offset=info.offset, shape=info.shape or (1,)).reshape(info.shape)

    def read_float32(self, name: str) -> np.ndarray:
        """One tensor as float32. Errors: StepFailed where it holds NaN or Inf."""
        raw = self.read(name)
        values = bfloat16_to_float32(raw) if self.tensors[name].dtype == "BF16" else raw.astype(np.float32)
        # The sum of a float32 array is finite unless an element is not, or it overflows: look closer only then.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(values.sum(dtype=np.float64))
        if suspicious:
            bad = np.argwhere(~np.isfinite(values))
            where = ", ".join(map(str, bad[0].tolist()))
            raise StepFailed(
                f"{self.source}: tensor {name} holds {len(bad)} NaN or Inf value{'s' if len(bad) > 1 else ''} "
                f"(first at [{where}]); the checkpoint is damaged, fetch or train it again"
            )
        return values

    def read_torch(self, name: str) -> "torch.Tensor":
        """One tensor in its stored dtype. Errors: StepFailed where it holds NaN or Inf."""
        import torch

        raw = np.array(self.read(name))
        tensor = (
            torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
            if self.tensors[name].dtype == "BF16"
            else torch.from_numpy(raw)
        )
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float64)):
            self.read_float32(name)
        return tensor

    def check_finite(self) -> None:
        """Read every weight once. Errors: StepFailed naming the first tensor that holds NaN or Inf."""
        for name, info in self.tensors.items():
            if info.dtype in FLOAT_DTYPES:
                self.read_float32(name)

    def files(self) -> Iterator[Path]:
        """The files whose bytes decide what a conversion gives: config, tokenizer, weights; sorted by name."""
        names = {"config.json", *TOKENIZER_FILES, "generation_config.json"}
        weights = {info.file for info in self.tensors.values()}
        yield from sorted({self.folder / name for name in names if (self.folder / name).is_file()} | weights)

    @property
    def digest(self) -> str:
        """sha256 over names and contents of ``files()``: two folders with the same bytes are the same source."""
        if "all" not in self._digests:
            whole = hashlib.sha256()
            for path, digest in sha256_files(self.files()).items():
                whole.update(f"{path.name} {digest}\n".encode())
            self._digests["all"] = whole.hexdigest()
        return self._digests["all"]


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256_loop(file)


def sha256_files(paths: Iterable[Path]) -> dict[Path, str]:
    """Several at a time, in the order given: hashing is the longest part of a conversion that only copies."""
    paths = list(paths)
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        return dict(zip(paths, pool.map(sha256_file, paths), strict=True))


def _sha256_loop(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise BadInput(f"{folder}: no config.json, so not a Hugging Face checkpoint; give the folder that holds it")
    return read_json(path)


def _read_tensor_index(folder: Path) -> dict[str, TensorInfo]:
    index_path = folder / "model.safetensors.index.json"
    tensors: dict[str, TensorInfo] = {}
    if index_path.is_file():
        try:
            weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{index_path}: not a safetensors index (no weight_map); fetch the file again") from None
        for shard in shards:
            if not (folder / shard).is_file():
                raise BadInput(f"{folder}: {index_path.name} names {shard}, which is missing; fetch that shard")
            tensors.update(read_safetensors_header(folder / shard))
        missing = sorted(set(weight_map) - set(tensors))
        if missing:
            raise BadInput(f"{folder}: {index_path.name} names tensor {missing[0]}, which no shard holds; fetch the shards again")
    else:
        for path in sorted(folder.glob("*.safetensors")):
            tensors.update(read_safetensors_header(path))
    if not tensors:
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
            raise BadInput(
                f"{folder}: holds pickle weights only (.bin), which can run code when opened; "
                "convert them to safetensors first (the Hub's convert space, or save_pretrained in a sandbox)"
            )
        raise BadInput(f"{folder}: no .safetensors weights; fetch the whole checkpoint")
    return tensors


def _known_to_transformers(config: dict[str, Any]) -> bool:
    """Whether transformers itself implements the model, so that the checkpoint's own code is not needed."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return config.get("model_type") in CONFIG_MAPPING_NAMES
