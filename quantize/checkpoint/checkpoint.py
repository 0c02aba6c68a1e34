"""A Hugging Face checkpoint: config, tokenizer files and tensor headers. Knows nothing of quantization.

Opening reads the config and the headers only (a 70 B checkpoint opens in well under a second); a tensor's
data is read when asked for, from safetensors files or from what stands for them (``reader``). Nothing from a
checkpoint is executed: no pickle, no remote code.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize.checkpoint.config import check_sizes, read_config
from quantize.checkpoint.own_classes import check_own_classes
from quantize.checkpoint.reader import IN_FILES, ReadEntry, ReadsEntries, TensorReader, Weights
from quantize.checkpoint.safetensors_header import TensorInfo, read_safetensors_header
from quantize.checkpoint.templates import DEFAULT, folder_templates
from quantize.checkpoint.weight_files import is_adapter_beside, read_weights
from quantize.dtypes import FLOATS, to_float32
from quantize.errors import BadInput, StepFailed, Unsupported
from quantize.file_hashes import user_hashes
from quantize.files import TEMPLATES, check_links, inside
from quantize.hashes import sha256_files
from quantize.terminal import printable

if TYPE_CHECKING:
    import torch

# what others find here
__all__ = [
    "Checkpoint",
    "TensorInfo",
    "is_adapter_beside",
    "read_config",
    "read_safetensors_header",
    "read_weights",
]

# Files that make up a tokenizer, and the other small files that belong to a model as served.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "spiece.model", "vocab.txt",
)  # fmt: skip
#: of a model that also sees or hears: how images and sounds become its inputs
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
#: name endings of buffers that old checkpoints store although a model computes them when it loads: rotary
#: frequencies, causal masks (as numbers, bytes or truth values), positions, counters
BUFFERS = (
    ".inv_freq", ".cos_cached", ".sin_cached", ".attn.bias", ".attention.bias", ".masked_bias",
    ".position_ids",
    ".num_batches_tracked",
)  # fmt: skip
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, eq=False)  # one is itself alone: caches remember answers about it
class Checkpoint:
    """``source`` is the path or Hub id as the person typed it; ``revision`` the pinned commit of a Hub model,
    else None.

    ``folder`` holds config and tokenizer, and the weights too unless ``reader`` says otherwise; a library
    that reads weights is given ``quantize.checkpoint.materialised``. ``left_alone``: names of .safetensors
    beside the model's. ``usual_files``: its weights lie where transformers looks for them. ``quantized``: the
    tensors that were quantized before, by type ("12 of Q4_K, 2 of Q6_K").
    """

    folder: Path
    source: str
    revision: str | None
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    trust_remote_code: bool = False
    left_alone: tuple[str, ...] = ()
    usual_files: bool = True
    reader: TensorReader = field(default=IN_FILES, repr=False, compare=False)
    quantized: str = ""
    _digests: "list[Future[str]]" = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        source: str = "",
        revision: str | None = None,
        trust_remote_code: bool = False,
        tokenizer: bool = True,
        weights: Weights | None = None,
    ) -> "Checkpoint":
        """Open a local folder. ``source`` and ``revision``: what it is of, where it is not the folder itself.
        ``weights``: those that are read from elsewhere; without them the folder's own.

        What a person typed, which may be a Hub id or a file, is opened by
        ``quantize.sources.opening.open_checkpoint``.

        Errors: BadInput for anything wrong with what lies there; Unsupported for a checkpoint that is
        quantized already.
        """
        model, folder = source or str(folder), Path(folder)
        if not folder.is_dir():
            raise BadInput(
                f"{model}: no such folder; use quantize.open_checkpoint for a Hub id or a .gguf file"
            )
        check_links(folder)
        config = read_config(folder)
        if not trust_remote_code:
            check_own_classes(model, folder, config)
        for part in (config, config.get("text_config") or {}):
            if part.get("quantization_config"):
                method = printable(part["quantization_config"].get("quant_method", "unknown"), 40)
                raise Unsupported(
                    f"{model}: already quantized ({method}); quantize "
                    "from the original full-precision checkpoint instead"
                )
        # what it named is read here; an artifact's weights are under the usual names
        named = config.pop("transformers_weights", None)
        if weights is None:
            tensors, files = read_weights(folder, named)
            weights = Weights(tensors, left_alone=files.left_alone, usual=files.usual)
        _check_types(model, weights.tensors)
        check_sizes(config, weights.tensors, str(folder / "config.json"))
        checkpoint = cls(
            folder,
            model,
            revision,
            config,
            weights.tensors,
            trust_remote_code,
            weights.left_alone,
            weights.usual,
            weights.reader,
            weights.quantized,
        )
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
        """Last part of the id or folder, for file names and tables; a folder of the Hub's cache goes by its
        model's id."""
        cached = re.search(
            r"/models--(?:[^/]+--)?([^/]+)/snapshots/[0-9a-f]{40}$", self.folder.absolute().as_posix()
        )
        # in a folder's name an @ is a letter like any other
        typed = self.source.partition("@")[0] if self.revision else self.source
        return cached[1] if cached else typed.rstrip("/").split("/")[-1] or self.folder.resolve().name

    @cached_property
    def parameters(self) -> int:
        """Number of weights stored, a tied embedding counted once; buffers are none."""
        return sum(info.parameters for name, info in self.tensors.items() if not name.endswith(BUFFERS))

    @cached_property
    def dtype(self) -> str:
        """The dtype of most weights, by safetensors' name; masks and counters do not count."""
        sizes: dict[str, int] = {}
        for info in self.tensors.values():
            if info.dtype in FLOATS:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.parameters
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def tokenizer_files(self) -> list[Path]:
        return [path for name in TOKENIZER_FILES if (path := inside(self.folder, name)).is_file()]

    @property
    def processor_files(self) -> list[Path]:
        return [path for name in PROCESSOR_FILES if (path := inside(self.folder, name)).is_file()]

    @property
    def companion_files(self) -> list[Path]:
        """Small files served beside the weights, copied unchanged into HF-format artifacts."""
        generation = inside(self.folder, "generation_config.json")
        return [
            *self.tokenizer_files,
            *self.processor_files,
            *([generation] if generation.is_file() else []),
        ]

    @property
    def chat_template(self) -> str | None:
        """The default one."""
        return folder_templates(self.folder).get(DEFAULT)

    def read(self, name: str) -> np.ndarray:
        """Raw data of one tensor, read-only, BF16 as uint16 bit patterns. Memory-mapped if a file stores it
        in this form: nothing is copied until it is used."""
        return self.reader.read(self.tensors[name])

    def entries(self, name: str) -> ReadEntry | None:
        """What reads one entry of a tensor's first axis at a time, as ``read`` does, where that takes no more
        memory than the entry; else None."""
        return self.reader.entries(self.tensors[name]) if isinstance(self.reader, ReadsEntries) else None

    def read_float32(self, name: str) -> np.ndarray:
        """One tensor as float32. Errors: StepFailed where it holds NaN or Inf."""
        raw = self.read(name)
        values = to_float32(raw, self.tensors[name].dtype)
        # The sum of a float32 array is finite unless an element is not, or it overflows: look closer only
        # then.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(values.sum(dtype=np.float64))
        if suspicious:
            bad = np.argwhere(~np.isfinite(values))
            where = ", ".join(map(str, bad[0].tolist()))
            raise StepFailed(
                f"{self.source}: tensor {name} holds {len(bad)} NaN or Inf "
                f"value{'s' if len(bad) > 1 else ''} "
                f"(first at [{where}]); the checkpoint is damaged, fetch or train it again"
            )
        return values

    def read_torch(self, name: str) -> "torch.Tensor":
        """One tensor in its stored dtype. Errors: StepFailed where it holds NaN or Inf."""
        import torch

        tensor = as_torch(self.read(name), self.tensors[name].dtype)
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float64)):
            self.read_float32(name)
        return tensor

    def check_finite(self) -> None:
        """Read every weight once. Errors: StepFailed naming the first tensor that holds NaN or Inf."""
        for name, info in self.tensors.items():
            if info.dtype in FLOATS:
                self.read_float32(name)

    @property
    def weight_files(self) -> list[str]:
        """Names of the files that the weights are read from."""
        return sorted({path.name for _, path in self.reader.files(self.tensors.values())})

    def contents(self) -> list[tuple[str, Path]]:
        """The files whose bytes decide what a conversion writes, by their names in a digest: config,
        tokenizer, processor, templates, pooling, weights."""
        names = {
            "config.json",
            *TOKENIZER_FILES,
            "generation_config.json",
            *PROCESSOR_FILES,
            "modules.json",
            "1_Pooling/config.json",
        }
        names |= {f"{TEMPLATES}/{path.name}" for path in self.folder.glob(f"{TEMPLATES}/*.jinja")}
        found = {(name, self.folder / name) for name in names if (self.folder / name).is_file()}
        for name, path in self.reader.files(self.tensors.values()):
            inner = PurePath(name)
            within = inner.relative_to(self.folder) if inner.is_relative_to(self.folder) else inner.name
            found.add((str(within), path))
        return sorted(found, key=lambda each: (PurePath(each[0]), each[1]))

    @property
    def digest(self) -> str:
        """``content_digest`` as it was when it was asked for first."""
        if not self._digests:
            self._digests.append(Future())
            _answer(self._digests[0], self.digest_now)
        return self._digests[0].result()

    def begin_digest(self) -> None:
        """Take ``digest`` in a thread, beside what this process does next; who asks for it waits for that."""
        if not self._digests:
            self._digests.append(Future())
            Thread(target=_answer, args=(self._digests[0], self.digest_now), daemon=True).start()

    def digest_now(self) -> str:
        """``content_digest`` of the files as they are. What was hashed before and has not changed since is
        not read again (``FileHashes``)."""
        contents = self.contents()
        return content_digest(contents, sha256_files({path for _, path in contents}, user_hashes().sha256))


def content_digest(contents: Iterable[tuple[str, Path]], hashes: Mapping[Path, str]) -> str:
    """sha256 over ``Checkpoint.contents()``, each file's name and sha256: two folders with the same bytes are
    the same source."""
    return hashlib.sha256("".join(f"{name} {hashes[path]}\n" for name, path in contents).encode()).hexdigest()


def as_torch(raw: np.ndarray, dtype: str) -> "torch.Tensor":
    """A copy of what ``Checkpoint.read`` gives of a tensor of ``dtype``."""
    import torch

    tensor = torch.from_numpy(np.array(raw))
    return tensor.view(torch.int16).view(torch.bfloat16) if dtype == "BF16" else tensor


def _answer(future: "Future[str]", make: Callable[[], str]) -> None:
    try:
        future.set_result(make())
    except Exception as error:  # raised again where it is asked for
        future.set_exception(error)


def _check_types(model: str, tensors: Mapping[str, TensorInfo]) -> None:
    """Errors: Unsupported where weights are not stored as floats, BadInput where there are none."""
    for name, info in tensors.items():
        if info.dtype in FLOATS or info.parameters <= 1 or info.dtype == "BOOL" or name.endswith(BUFFERS):
            continue
        packed = name.endswith((".qweight", ".qzeros", ".weight_packed", ".scales"))
        if packed or info.dtype.startswith(("F4", "F6", "F8", "U8", "I8")):
            raise Unsupported(
                f"{model}: tensor {name} is stored as {info.dtype}, so the checkpoint is already quantized; "
                "start from a full-precision one"
            )
        if info.dtype in ("I16", "U16", "C64") or name.endswith((".weight", ".bias", "_proj")):
            raise Unsupported(
                f"{model}: tensor {name} is stored as {info.dtype}; expected a weight in "
                f"{', '.join(FLOATS)}; fetch the file again, or start from a full-precision checkpoint"
            )
    if not any(info.dtype in FLOATS and info.parameters for info in tensors.values()):
        raise BadInput(f"{model}: its files hold no weights; fetch the whole checkpoint")
