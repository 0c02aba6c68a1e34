"""The second reader of anybody's file: whose tensors it holds, and what each is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo
from quantize.checkpoint.config import read_config
from quantize.checkpoint.tensors import StoredTensors
from quantize.dtypes import FLOATS, dense, to_float32
from quantize.errors import BadInput, QuantwrightError, Unsupported
from quantize.files import parse_json
from quantize.formats.base import Format
from quantize.formats.bitsandbytes import STATE, BnbFormat
from quantize.formats.dense import DenseFormat
from quantize.formats.gguf import GgufFormat
from quantize.formats.packed import PackedFormat, stored_tensors
from quantize.formats.quanto import QuantoFormat
from quantize.formats.stored import stored_packed
from quantize.formats.stored_compressed import stored_compressed
from quantize.formats.torchao import QDATA, TorchAoFormat
from quantize.gguf.container.reader import GgufFile, read_gguf
from quantize.gguf.families.base import FamilyPlan
from quantize.gguf.families.plan import plan as family_plan
from quantize.gguf.families.plan import restore
from quantize.hf.load import storage_format
from quantize.hf.names import HEAD, empty_model
from quantize.hf.needed import needed
from quantize.inspection.programs import file_type
from quantize.sources.gguf_file import open_gguf
from quantize.sources.opening import UNDONE, open_checkpoint
from quantize.terminal import printable

HEAD_WEIGHT = f"{HEAD}.weight"
#: a tensor of constants that older files of some families lack, or have more of
CONSTANTS = "rope_"


@dataclass(frozen=True)
class Reading:
    """``base``: whose names and shapes its tensors are read by; ``own``: what the file makes of itself, with
    its own config or metadata, None where there is no way back from it. ``stage``: a folder that ``format``
    reads. ``family``: of a GGUF, what its source's would hold. ``odd``: what the file holds or lacks that
    ``base`` does not explain, (name, why)."""

    storage: str
    base: Checkpoint
    own: Checkpoint | None
    format: Format
    stage: Path
    gguf: GgufFile | None = None
    family: FamilyPlan | None = None
    odd: tuple[tuple[str, str], ...] = ()
    why_not_own: str = ""
    _stream: Callable[[], Iterator[tuple[str, np.ndarray]]] | None = field(default=None, repr=False)

    def stream(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, float32 array of the source's shape), one in memory at a time. A value may be NaN or Inf.

        Errors: QuantwrightError, ValueError, KeyError, IndexError where the file cannot be read so.
        """
        if self._stream is not None:
            return self._stream()
        return self.format.dequantize(self.stage, self.base)


def open_reading(path: Path, gguf: Path | None, source: Checkpoint | None, scratch: Path) -> Reading:
    """``gguf``: the file, where ``path`` is or holds one. ``scratch``: a folder that stays as long as the
    reading.

    Errors: Unsupported where this program has no reader of what lies there; BadInput where it is damaged.
    """
    if gguf is not None:
        return _gguf(gguf, source, scratch)
    config = read_config(path)
    storage = storage_format(path, config)
    if storage in ("gptq", "awq"):
        packed = stored_packed(path)
        return Reading(storage, packed.checkpoint, packed.checkpoint, packed.format, path)
    if storage in ("bitsandbytes", "quanto", "torchao"):
        return _library(path, storage, source)
    if storage == "compressed-tensors":
        try:
            stored = stored_compressed(path)
            return Reading(storage, stored.checkpoint, stored.checkpoint, stored.format, path)
        except BadInput:  # of a scheme that this program does not write
            pass
    if storage != "dense" and storage not in UNDONE:
        raise Unsupported(f"weights packed as {printable(storage, 40)} are not read here")
    checkpoint = open_checkpoint(path, tokenizer=False)
    format = DenseFormat(dense(checkpoint.dtype, "float32"))
    return Reading(storage, checkpoint, checkpoint, format, path, _stream=lambda: _values(checkpoint))


def _values(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    for name, info in checkpoint.tensors.items():
        raw = checkpoint.read(name)
        yield name, to_float32(raw, info.dtype) if info.dtype in FLOATS else raw.astype(np.float32)


def _gguf(path: Path, source: Checkpoint | None, scratch: Path) -> Reading:
    file, own, why = read_gguf(path), None, ""
    stage = scratch / "gguf"
    stage.mkdir(exist_ok=True)
    for part in {tensor.file for tensor in file.tensors.values()} | {path}:
        (stage / part.name).symlink_to(part.resolve())
    try:
        own = open_gguf(path, tokenizer=False, scratch=scratch)
    except QuantwrightError as error:
        why = str(error)
    base, family = source, None
    if base is not None:
        try:
            family = family_plan(base)
        except QuantwrightError as error:
            why, base = f"{why}; {error}" if why else str(error), None
    if base is None:
        if own is None:
            raise Unsupported(why)
        base = own
        try:
            family = family_plan(own)
        except QuantwrightError:
            family = None
    kind = file_type(file.kvs.get("general.file_type")) or "unknown"
    tensors = tuple(family.tensors) if family else ()
    format = GgufFormat(kind, tensors)
    if family is None:
        return Reading("gguf", base, own, format, stage, file, _stream=lambda: _values(base))
    there, odd = [], []
    for mapped in tensors:
        found = file.tensors.get(mapped.name)
        if found is None:
            if mapped.sources or not mapped.name.startswith(CONSTANTS):
                odd.append((mapped.name, "the file lacks it"))
        elif tuple(found.shape) != mapped.shape and mapped.sources:
            odd.append((mapped.name, f"has shape {list(found.shape)}, its source {list(mapped.shape)}"))
        else:
            there.append(mapped)
    more = set(file.tensors) - {mapped.name for mapped in tensors}
    head = "output.weight" in more
    odd += [(name, "its source has no tensor for it") for name in sorted(more - {"output.weight"})
            if not name.startswith(CONSTANTS)]  # fmt: skip

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        yield from restore(there, file.dequantize)
        if head:
            yield HEAD_WEIGHT, file.dequantize("output.weight")

    left = {n: i for n, i in base.tensors.items() if n not in family.left_out}
    return Reading(
        "gguf", replace(base, tensors=left) if family.left_out else base, own, format, stage, file, family,
        tuple(odd), why, stream,
    )  # fmt: skip


def _library(path: Path, storage: str, source: Checkpoint | None) -> Reading:
    """What bitsandbytes, torchao and optimum-quanto store, by the tensors of its source, or by what the
    file's own headers and config say of them."""
    config = {k: v for k, v in read_config(path).items() if k != "quantization_config"}
    base = needed(source)[0] if source is not None else _from_headers(path, storage, config)
    own = replace(base, folder=path, source=str(path), config=config) if source is not None else base
    if storage == "bitsandbytes":
        return Reading(storage, base, own, BnbFormat("nf4"), path)  # which reads what the file says
    if storage == "torchao":
        return Reading(storage, base, own, TorchAoFormat(), path)  # as well
    found = QuantoFormat("int8").quantized(path)
    return Reading(storage, base, own, QuantoFormat(next(iter(found.values()), "int8").split()[0]), path)


def _from_headers(path: Path, storage: str, config: dict[str, object]) -> Checkpoint:
    stored = StoredTensors(path)
    tensors: dict[str, TensorInfo] = {}
    dtype = next((info.dtype for info in stored.info.values() if info.dtype in FLOATS), "F32")
    if storage == "quanto":
        plain = Checkpoint(path, str(path), None, dict(config), {})
        shapes = {name: tuple(p.shape) for name, p in empty_model(plain).named_parameters()}
        for name, info in stored.info.items():
            weight = name.removesuffix("._data").removesuffix("._data")
            if weight in shapes:
                tensors[weight] = TensorInfo(weight, shapes[weight], dtype)
            elif weight == name and not name.endswith(("._scale", "._shift", "input_scale", "output_scale")):
                tensors[name] = info
        return replace(plain, tensors=tensors)
    own = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format",
           "._weight_scale", "._weight_zero_point")  # fmt: skip
    for name, info in stored.info.items():
        if name.endswith(own) or STATE in name:
            continue
        shape = info.shape
        state = next((f"{name}{STATE}{k}" for k in ("nf4", "fp4") if f"{name}{STATE}{k}" in stored), None)
        if state:
            said = parse_json(bytes(stored.raw(state)), f"{path}: {state}")
            shape = tuple(int(axis) for axis in said["shape"])
        kept = info.dtype if info.dtype in FLOATS else dtype
        name = name.replace(QDATA, ".weight")
        tensors[name] = TensorInfo(name, shape, kept)
    return Checkpoint(path, str(path), None, dict(config), tensors)


def packed_of(reading: Reading) -> Callable[[str], "tuple[np.ndarray, ...] | None"]:
    """Source name -> codes (i, o), zero points and scales (g, o), group of each input, of GPTQ and AWQ."""
    format = reading.format
    if not isinstance(format, PackedFormat) or format.storage not in ("gptq", "awq"):
        return lambda name: None
    stored = stored_tensors(reading.stage)

    def of(name: str) -> "tuple[np.ndarray, ...] | None":
        linears = format.by_source.get(name, [])
        if len(linears) != 1:
            return None
        linear = linears[0]
        if reading.base.tensors[name].shape != (linear.outputs, linear.inputs):
            return None
        return format.codes_of(stored, linear)

    return of
