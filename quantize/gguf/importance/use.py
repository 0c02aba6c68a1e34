"""What an importance matrix means for the tensors of one model: which get importances, which go without, and
what is noted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from gguf import GGUFValueType

from quantize.artifact.artifact import Note
from quantize.errors import BadInput, Unsupported
from quantize.gguf.container.writer import Kvs
from quantize.gguf.importance.file import Entry, ImportanceMatrix
from quantize.gguf.mixture import Choice, Spec, category, requires_imatrix, write_order
from quantize.kernels.block_types import UNQUANTIZED, FileType, Type

#: types whose block quantizers look at importances
WEIGHTED = frozenset(Type) - {*UNQUANTIZED, Type.Q8_0, Type.MXFP4, Type.TQ1_0, Type.TQ2_0}

#: the fewest columns for which any block quantizer fits a separate value
GROUP = 8


@dataclass
class Importances:
    """``rows``: GGUF name -> float32 (matrices, columns), one row for each matrix of the tensor; ``kvs`` go
    into the file."""

    kvs: Kvs = field(default_factory=dict)
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def importances(
    matrix: ImportanceMatrix | None,
    specs: Sequence[Spec],
    choices: Mapping[str, Choice],
    file_type: FileType,
    source: str,
) -> Importances:
    """As llama-quantize has it: a tensor without an entry is quantized without, one of another size is
    refused (but the token embedding, which goes without), and the types below 3 bits are refused without.
    ``source``: name of the matrix's file.

    Errors: BadInput where the matrix is that of another model; Unsupported where a type needs an entry that
    is not there.
    """
    out = Importances(_kvs(matrix, source) if matrix is not None else {})
    if matrix is not None:
        _check_model(matrix, specs, source)
    for spec in specs:
        kind = choices[spec.name].kind
        entry = matrix.entries.get(spec.name) if matrix is not None else None
        if kind is spec.lossless:
            continue
        if entry is not None and entry.sums.size != _size(spec):
            if category(spec.name) != "token_embd":
                raise BadInput(
                    f"{source}: {spec.name} has {entry.sums.size} importances, "
                    f"this model's has {_size(spec)}: an importance matrix of "
                    "another model; compute one with `quantwright imatrix`"
                )
            entry = None
        if kind not in WEIGHTED:
            continue
        if entry is None and requires_imatrix(spec.name, kind, file_type):
            mend = (
                f"but {source} has no entry for this tensor"
                if matrix is not None
                else "give one with --imatrix, or take a larger type"
            )
            raise Unsupported(f"{spec.name} as {kind.name} needs an importance matrix, {mend}")
        if entry is not None:
            rows, zeros = _even(entry.means().reshape(-1, spec.shape[-1]))
            out.rows[spec.name] = rows
            out.notes += _unreached(spec.name, entry)
            if zeros:
                what = f"equal importances for {zeros:,} of {rows.size:,} columns"
                out.notes.append(Note(tensor=spec.name, what=what, why=f"{source} has only zeros for them"))
        elif matrix is not None:
            out.notes.append(
                Note(
                    tensor=spec.name,
                    what=f"quantized to {kind.name} without importances",
                    why=f"{source} has no entry for this tensor",
                )
            )
    if matrix is not None and not out.rows:
        out.notes.append(
            Note(
                tensor="*",
                what="importances not used",
                why=f"no tensor of this file gets a type that uses the importances of {source}",
            )
        )
    return out


def planned_importances(source: str) -> Importances:
    """In place of a matrix that is not there yet: the metadata that it will bring, but for the text's
    name."""
    return Importances(_kvs(ImportanceMatrix({}, (source,), 1, 0), source))


def _even(rows: np.ndarray) -> tuple[np.ndarray, int]:
    """``rows`` (matrices, columns) with the mean importance where ``GROUP`` columns in a row have none, and
    how many those are.

    A block quantizer whose weights are all zero takes any value for as good as any other, zero and NaN among
    them.
    """
    cut = rows.shape[1] // GROUP * GROUP
    empty = np.zeros(rows.shape, bool)
    empty[:, :cut] = np.repeat((rows[:, :cut].reshape(len(rows), -1, GROUP) == 0).all(axis=2), GROUP, axis=1)
    if not empty.any():
        return rows, 0
    counted = (rows > 0).sum(axis=1, keepdims=True)
    mean = np.where(
        counted > 0, rows.sum(axis=1, keepdims=True, dtype=np.float64) / np.maximum(counted, 1), 1.0
    )
    return np.where(empty, mean.astype(np.float32), rows), int(empty.sum())


def _size(spec: Spec) -> int:
    return spec.shape[-1] * (spec.shape[-3] if len(spec.shape) > 2 else 1)


def _check_model(matrix: ImportanceMatrix, specs: Sequence[Spec], source: str) -> None:
    known = {spec.name for spec in specs}
    layers = 1 + max(write_order(spec.name)[0] for spec in specs)
    beyond = next((name for name in sorted(matrix.entries) if write_order(name)[0] >= layers), None)
    if beyond is not None or not known & matrix.entries.keys():
        first = beyond or min(matrix.entries)
        raise BadInput(
            f"{source}: has an entry for {first}, which this model of {layers} layers does not "
            "have: an importance matrix of another model; compute one with `quantwright imatrix`"
        )


def _unreached(name: str, entry: Entry) -> list[Note]:
    empty = np.flatnonzero(entry.counts == 0).tolist()
    if not empty:
        return []
    which = (
        f"experts {', '.join(map(str, empty[:8]))}{' and more' if len(empty) > 8 else ''}"
        if len(entry.counts) > 1
        else "all"
    )
    why = "no token of the calibration text reached them" if len(entry.counts) > 1 else "its count is 0"
    return [
        Note(tensor=name, what=f"equal importances ({which}, {len(empty)} of {len(entry.counts)})", why=why)
    ]


def _kvs(matrix: ImportanceMatrix, source: str) -> Kvs:
    """``quantize.imatrix.*`` in llama-quantize's order."""
    prefix, text, number = "quantize.imatrix.", GGUFValueType.STRING, GGUFValueType.UINT32
    return {
        f"{prefix}file": (source, text),
        **({f"{prefix}dataset": (matrix.datasets[0], text)} if matrix.datasets else {}),
        f"{prefix}entries_count": (len(matrix.entries), number),
        **({f"{prefix}chunks_count": (matrix.chunk_count, number)} if matrix.chunk_count else {}),
    }
