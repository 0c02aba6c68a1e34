"""An engine: what makes artifacts. What of it is installed, and what it reports of its work: what it held in
memory before it saved, and what it wrote."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quantize.artifact.artifact import Note
from quantize.numerics.sketch import differing_rows, sketch
from quantize.packages import Probe, probe


class Engine:
    """Importing an engine's file must be cheap: its own libraries are imported inside functions."""

    #: the distribution that computes, by whose version the manifest names the engine
    distribution: ClassVar[str] = "quantwright"
    #: (distribution, module to look for) that must be installed
    needs: ClassVar[tuple[tuple[str, str], ...]] = ()
    #: extra of this project that installs ``needs``
    extra: ClassVar[str] = ""
    #: distributions whose versions the manifest records, beside numpy's
    libraries: ClassVar[tuple[str, ...]] = ()
    #: whether the conversion itself runs on ``--device`` (and so may depend on it), rather than on the CPU
    #: always
    on_device: ClassVar[bool] = True

    def probe(self) -> Probe:
        """What of it is installed, of which versions; nothing is imported."""
        return probe(self.needs, [self.distribution, *self.libraries])

    @property
    def label(self) -> str:
        """The name and version that manifests give."""
        return f"{self.distribution} {self.probe().versions.get(self.distribution, 'absent')}"


class Computed:
    """What an engine held in memory before it saved: a sketch of every row of every tensor
    (``numerics.sketch``), by the names that ``Method.dequantize`` returns.

    ``rounding``: the share of a value by which the format's second reader may legitimately differ; by default
    that of float32 arithmetic in another order.
    """

    def __init__(self, rounding: float = 2.0**-20):
        self.rounding = rounding
        self._sketches: dict[str, np.ndarray] = {}
        self._sources: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._sketches

    def add(self, name: str, values: np.ndarray, unknown: np.ndarray | None = None) -> None:
        """``values`` float32, of the source's shape; ``unknown``: rows (bool) that the format legitimately
        changes."""
        rows = sketch(values)
        if unknown is not None:
            rows[unknown] = np.nan
        self._sketches[name] = rows

    def took(self, name: str, source: np.ndarray) -> None:
        """``source`` float32, of the source's shape: the values that the engine had in memory as this tensor
        before it quantized, exactly the source's if it took the right one."""
        self._sources[name] = sketch(source)

    def keep(self, name: str, source: np.ndarray, values: np.ndarray) -> None:
        """``took`` and ``add`` at once, of sketches that were made part by part."""
        self._sources[name], self._sketches[name] = source, values

    def has_source(self, name: str) -> bool:
        return name in self._sources

    def differing_rows(self, name: str, values: np.ndarray, first: int | None = None) -> np.ndarray:
        """Numbers of rows of ``values``; these are the tensor, or its rows from ``first`` on."""
        return self._differing(self._sketches[name], values, self.rounding, first)

    def rows_of_another_source(self, name: str, source: np.ndarray, first: int | None = None) -> np.ndarray:
        return self._differing(self._sources[name], source, 2.0**-40, first)

    @staticmethod
    def _differing(known: np.ndarray, values: np.ndarray, rounding: float, first: int | None) -> np.ndarray:
        rows = sketch(values)
        if first is not None:
            known = known[first : first + len(rows)]
        if rows.shape != known.shape:
            return np.arange(1)
        return differing_rows(rows, known, values, rounding)


@dataclass
class Conversion:
    """What a method reports about its work; it goes into the manifest.

    ``weight_bytes`` are the bytes of tensor data written (scales and zero points included, containers'
    headers not).
    """

    weight_bytes: int
    engine: str
    libraries: tuple[str, ...] = ()  # distributions whose versions the manifest records
    notes: list[Note] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)  # of files that were hashed while they were written
    # CRC-32 of each tensor's bytes as they were made, by the name in the file (``Format.checksums``)
    checksums: dict[str, int] = field(default_factory=dict)
    shared: tuple[str, ...] = ()  # what an earlier conversion had computed, with the same result
    loads_in: tuple[str, ...] = ()  # where not all runtimes of the method can open the artifact
    computed: Computed | None = None  # None: the method's own code computed, or nothing was
    work: tuple[
        Path, ...
    ] = ()  # folders that an interrupted conversion would go on from; gone when committed
