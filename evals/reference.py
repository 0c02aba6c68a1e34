"""The reference's logits, run once for any number of candidates: a compact cache on disk, or recomputed side
by side.
"""

import hashlib
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.kernels import as_tensor, blocks, kl_rows
from evals.perplexity import run_windows
from evals.row_codes import ROW, ROW_BYTES, analyse, decode, encode
from evals.windows import Windows
from quantize.disk_errors import disk_errors
from quantize.errors import StepFailed
from quantize.into_place import put_in_place
from quantize.progress import Advance
from quantize.runtimes.base import Runtime
from quantize.staging import held_folder, held_until_exit

if TYPE_CHECKING:
    import torch

HELD_BYTES = 256 << 20  # reference logits held at once where both models run side by side


Consume = Callable[[slice, np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class KnownRows:
    """Of some scored positions: float32 (n, v) log-probabilities (or logits: any constant a row may be
    added), float64 (n,) ln p(true token), int (n,) most probable token, float (n,) its probability."""

    logits: "torch.Tensor"
    true_log_probs: np.ndarray
    top: np.ndarray
    confidence: np.ndarray


class ReferenceRows(ABC):
    vocabulary: int

    @abstractmethod
    def rows(self, where: slice) -> KnownRows:
        """Of positions ``where`` of the flat array of scored tokens; valid until the next call."""

    @abstractmethod
    def drive(self, runtime: Runtime, windows: Windows, consume: Consume, advance: Advance | None) -> None:
        """Run the candidate so that ``rows`` can answer for every position it pushes to ``consume``."""

    @abstractmethod
    def only(self, windows: Windows, indices: np.ndarray) -> "ReferenceRows":
        """The same of some of ``windows``, which this was made on: positions count in those alone. Not to be
        closed."""


def cache_bytes(windows: Windows, vocabulary: int) -> int:
    return windows.scored * (2 * vocabulary + ROW_BYTES)


class CachedReference(ReferenceRows):
    """``folder``: codes.i16 (tokens, vocabulary), rows.bin, and what they were made from in cache.json,
    written last."""

    def __init__(self, folder: Path, temporary: bool = False):
        self.folder = folder
        self.temporary = temporary
        self.about: dict[str, Any] = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        self.vocabulary = int(self.about["vocabulary"])
        self._rows = np.fromfile(folder / "rows.bin", ROW)
        #: divergence of each token of the reference from its own cache, where this process wrote it:
        #: (tokens,) float64
        self.self_kl: np.ndarray | None = None
        self._read = np.empty((0, self.vocabulary), "<i2")
        # Read, not mapped: mapped pages would count as this process's memory, and a limit on that would end
        # it.
        self._codes = open(folder / "codes.i16", "rb", buffering=0)  # noqa: SIM115 - closed by close()
        if self._codes.seek(0, 2) != 2 * len(self._rows) * self.vocabulary:
            self._codes.close()
            raise ValueError(f"{folder}: the numbers of codes and rows differ")

    @property
    def true_log_probs(self) -> np.ndarray:
        """float64 (tokens,), exact to float32: the reference's own scores, so that its perplexity needs no
        second run."""
        values = self._rows["true_log_prob"].astype(np.float64)
        values[~np.isfinite(values)] = np.nan
        return values

    @property
    def confidence(self) -> np.ndarray:
        """float64 (tokens,): the reference's largest probability."""
        return self._rows["confidence"].astype(np.float64)

    @property
    def size_bytes(self) -> int:
        return 2 * len(self._rows) * self.vocabulary + self._rows.nbytes

    def rows(self, where: slice) -> KnownRows:
        kept = self._rows[where]
        if self._read.shape[0] < len(kept):  # made once: touching new memory takes as long as reading
            self._read = np.empty((len(kept), self.vocabulary), "<i2")
        codes = self._read[: len(kept)]
        self._codes.seek(2 * self.vocabulary * where.start)
        if self._codes.readinto(codes) != codes.nbytes:  # type: ignore[arg-type]
            raise StepFailed(
                f"{self.folder}: the reference's logits end early; remove that folder and run again"
            )
        return KnownRows(
            decode(codes, kept), kept["true_log_prob"].astype(np.float64), kept["top"], kept["confidence"]
        )

    def drive(self, runtime: Runtime, windows: Windows, consume: Consume, advance: Advance | None) -> None:
        run_windows(runtime, windows, consume, advance)

    def only(self, windows: Windows, indices: np.ndarray) -> "ReferenceRows":
        return _SomeWindows(self, windows.offsets[indices], windows.only(indices).offsets)

    def close(self) -> None:
        self._codes.close()
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


class _SomeWindows(ReferenceRows):
    """``begins``: where each of the windows begins in ``whole``; ``offsets``: where it begins here."""

    def __init__(self, whole: CachedReference, begins: np.ndarray, offsets: np.ndarray):
        self.whole, self.vocabulary = whole, whole.vocabulary
        self._begins, self._offsets = begins, offsets

    def rows(self, where: slice) -> KnownRows:
        """``where`` lies within one window, as everything that a runtime pushes does."""
        window = int(np.searchsorted(self._offsets, where.start, side="right")) - 1
        shift = int(self._begins[window] - self._offsets[window])
        return self.whole.rows(slice(where.start + shift, where.stop + shift))

    def drive(self, runtime: Runtime, windows: Windows, consume: Consume, advance: Advance | None) -> None:
        self.whole.drive(runtime, windows, consume, advance)

    def only(self, windows: Windows, indices: np.ndarray) -> ReferenceRows:
        return _SomeWindows(self.whole, self._begins[indices], windows.only(indices).offsets)


class SideBySideReference(ReferenceRows):
    """Nothing is kept: some windows go through the reference, then through the candidate. Exact, and the
    reference runs again for every candidate."""

    def __init__(self, reference: Runtime):
        self.reference = reference
        self.vocabulary = reference.vocabulary
        self._held: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self._starts: np.ndarray = np.empty(0, np.int64)

    def rows(self, where: slice) -> KnownRows:
        window = int(np.searchsorted(self._starts, where.start, side="right")) - 1
        start, logits, kept = self._held[window]
        part = slice(where.start - start, where.stop - start)
        rows = kept[part]
        return KnownRows(
            as_tensor(logits[part]), rows["true_log_prob"].astype(np.float64), rows["top"], rows["confidence"]
        )

    def only(self, windows: Windows, indices: np.ndarray) -> ReferenceRows:
        return self  # nothing is kept that positions could be counted in

    def drive(self, runtime: Runtime, windows: Windows, consume: Consume, advance: Advance | None) -> None:
        offsets = windows.offsets
        self._starts = offsets[:-1]
        for members, rows, first in windows.groups():
            scored = rows.shape[1] - first
            step = max(1, HELD_BYTES // (scored * self.vocabulary * 4))
            for begin in range(0, len(members), step):
                part = members[begin : begin + step]
                self._held = {
                    int(i): (
                        int(offsets[i]),
                        np.empty((scored, self.vocabulary), np.float32),
                        np.empty(scored, ROW),
                    )
                    for i in part
                }

                def keep(
                    row: int, position: int, logits: np.ndarray, part: np.ndarray = part, first: int = first
                ) -> None:
                    index = int(part[row])
                    _, held, kept = self._held[index]
                    targets = windows.windows[index].tokens[position + 1 : position + 1 + len(logits)]
                    place = slice(position - first, position - first + len(logits))
                    held[place] = logits
                    for block in blocks(*logits.shape):
                        kept[place.start + block.start : place.start + block.stop] = analyse(
                            logits[block], targets[block]
                        )[1]

                def take(
                    row: int, position: int, logits: np.ndarray, part: np.ndarray = part, first: int = first
                ) -> None:
                    index = int(part[row])
                    start = int(offsets[index]) + position - first
                    targets = windows.windows[index].tokens[position + 1 : position + 1 + len(logits)]
                    consume(slice(start, start + len(logits)), logits, targets)
                    if advance:
                        advance(len(logits))

                self.reference.logits(rows[begin : begin + step], first, keep)
                runtime.logits(rows[begin : begin + step], first, take)
        self._held = {}


def cache_key(windows: Windows, reference_digest: str, describe: dict[str, Any]) -> str:
    """Everything that could change the reference's logits: its files, the ids and scored positions, runtime,
    dtype, threads."""
    content = {"format": 1, "ids": windows.ids_sha256, "reference": reference_digest, "runtime": describe}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def find_cache(root: Path, key: str) -> CachedReference | None:
    folder = root / f"reference-{key[:16]}"
    try:
        cached = CachedReference(folder)
    except (OSError, ValueError, KeyError):
        return None
    return cached if cached.about.get("key") == key else None


def write_cache(
    reference: Runtime,
    windows: Windows,
    key: str,
    root: Path | None = None,
    advance: Advance | None = None,
    check_self: bool = False,
    digest: str = "",
    scratch: Path | None = None,
) -> CachedReference:
    """Run the reference once. ``root``: where caches are kept; without one it is temporary, in ``scratch``.
    Renamed into place when complete.

    ``check_self`` compares what was kept with what came, so that the reference's own row needs no second run.
    ``digest``, the reference's own, is noted for whoever looks for its logits.
    """
    import torch

    with ExitStack() as held:
        held.enter_context(disk_errors(root or scratch or Path(tempfile.gettempdir())))
        if root is None:
            stage = held_until_exit("reference", scratch)
        else:
            root.mkdir(parents=True, exist_ok=True)
            stage = held.enter_context(held_folder(root, ".reference-", mode=0o777))
        total, vocabulary = windows.scored, reference.vocabulary
        kept = np.empty(total, ROW)
        self_kl = np.full(total, np.nan)

        def consume(where: slice, logits: np.ndarray, targets: np.ndarray) -> None:
            for block in blocks(*logits.shape):
                place = slice(where.start + block.start, where.start + block.stop)
                log_probs, rows = analyse(logits[block], targets[block])
                coded = encode(log_probs, rows)
                codes.seek(2 * vocabulary * place.start)
                codes.write(np.ascontiguousarray(coded, "<i2").data)
                kept[place] = rows
                if check_self:
                    top = torch.from_numpy(rows["top"].astype(np.int64))
                    self_kl[place] = kl_rows(decode(coded, rows), log_probs, top)[0].numpy()

        with open(stage / "codes.i16", "wb") as codes:
            run_windows(reference, windows, consume, advance)
        kept.tofile(stage / "rows.bin")
        about = {
            "key": key,
            "reference": digest,
            "vocabulary": vocabulary,
            "tokens": total,
            "protocol": windows.protocol.name,
        }
        (stage / "cache.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
        folder = stage
        if root is not None:
            folder = root / f"reference-{key[:16]}"
            put_in_place(stage, folder, replace=True)
        cached = CachedReference(folder, temporary=root is None)
        cached.self_kl = self_kl if check_self else None
        return cached
