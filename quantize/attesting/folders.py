"""A Hugging Face folder converted again beside the first, and the two compared file by file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quantize.artifact.artifact import DROPPINGS, MANIFEST, Artifact, Manifest
from quantize.attesting.metadata import config_metadata
from quantize.attesting.outcome import Outcome, TensorDifference
from quantize.checkpoint.tensors import StoredTensors
from quantize.errors import QuantwrightError
from quantize.files import files_inside
from quantize.hashes import sha256_file
from quantize.methods.base import Work

WEIGHTS = (".safetensors", ".safetensors.index.json")
#: what may lie beside an artifact: the Hub and systems put them there, and no loader reads them
BESIDE = (MANIFEST, "README.md", ".gitattributes", ".gitignore", ".cache", *DROPPINGS)


def compared(folder: Path, manifest: Manifest, made: Artifact, work: Work) -> Outcome:  # type: ignore[type-arg]
    """``folder`` against ``made``, which the recipe made of the source just now."""
    files = {name: sha256_file(folder / name) for name in manifest.files}
    wanted = {name: entry.sha256 for name, entry in made.manifest.files.items()}
    out = Outcome(files, manifest.recipe)
    out.whole = [name for name, sha256 in files.items() if wanted.get(name) == sha256]
    theirs, mine = StoredTensors(folder), StoredTensors(made.folder)
    out.tensors = len(mine.info)
    if any(name.endswith(WEIGHTS) for name in (files.keys() | wanted.keys()) - set(out.whole)):
        out.differing = _tensors(theirs, mine, _errors(folder, made.folder, work))
    for name in sorted((files.keys() | wanted.keys()) - set(out.whole)):
        _file(out, name, folder, made.folder, name in files, name in wanted)
    out.files_differ += [
        f"{name}: stands beside the files of the manifest, and the recipe makes none"
        for name in _more(folder, files)
    ]
    return out


def _file(out: Outcome, name: str, folder: Path, made: Path, there: bool, wanted: bool) -> None:
    if not (there and wanted):
        out.files_differ.append(f"{name}: {'the recipe makes none' if there else 'is missing'}")
    elif name.endswith(WEIGHTS):
        if not out.differing:
            out.files_differ.append(f"{name}: every tensor is the same, the rest of the file is not")
    elif name.endswith(".json"):
        found = config_metadata(name, folder / name, made / name)
        out.metadata += found
        if not found:
            out.files_differ.append(f"{name}: is written otherwise, and says the same")
    else:
        out.files_differ.append(f"{name}: is not the source's")


def _more(folder: Path, files: dict[str, str]) -> list[str]:
    """What lies in ``folder`` beside the files of the manifest and what nobody reads."""
    known = {name.partition("/")[0] for name in files} | {*BESIDE}
    return [path.name for path in files_inside(folder, "*") if path.name not in known]


def _tensors(theirs: StoredTensors, mine: StoredTensors, errors: dict[str, float]) -> list[TensorDifference]:
    out = []
    for name in dict.fromkeys([*mine, *theirs]):
        if name not in theirs or name not in mine:
            why = "is missing, and the recipe makes it" if name in mine else "the recipe makes none"
            out.append(TensorDifference(name, (mine if name in mine else theirs).info[name].dtype, why=why))
            continue
        a, b = theirs.info[name], mine.info[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            why = f"is {a.dtype} {list(a.shape)}, the recipe gives {b.dtype} {list(b.shape)}"
            out.append(TensorDifference(name, b.dtype, why=why))
            continue
        x, y = theirs.raw(name).reshape(-1), mine.raw(name).reshape(-1)
        size = x.dtype.itemsize
        apart = int((x.view(f"u{size}") != y.view(f"u{size}")).sum()) if size in (1, 2, 4, 8) else 0
        if apart:
            error = errors.get(_layer(name))
            out.append(TensorDifference(name, b.dtype, apart, x.size, f"{b.dtype} values", error))
    return out


def _layer(name: str) -> str:
    """``model.layers.0.mlp.up_proj`` of its qweight, scales and weight."""
    return name.rpartition(".")[0]


def _errors(folder: Path, made: Path, work: Work) -> dict[str, float]:  # type: ignore[type-arg]
    """The largest difference of the weights of each layer, by the format's own reader; without those that
    it cannot read."""
    out: dict[str, float] = {}
    try:
        for name, mine, theirs in _both(folder, made, work):
            if mine.shape == theirs.shape and not np.array_equal(mine, theirs):
                with np.errstate(all="ignore"):
                    worst = float(np.abs(mine - theirs).max(initial=0.0))
                worst = worst if np.isfinite(worst) else float("inf")
                out[_layer(name)] = max(worst, out.get(_layer(name), 0.0))
    except (QuantwrightError, KeyError, ValueError):  # a tensor of another shape, or none: it is named anyway
        pass
    return out


def _both(folder: Path, made: Path, work: Work) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:  # type: ignore[type-arg]
    streams = (work.format.dequantize(made, work.checkpoint), work.format.dequantize(folder, work.checkpoint))
    for (name, mine), (other, theirs) in zip(*streams, strict=True):
        if name != other:
            return
        yield name, mine, theirs
