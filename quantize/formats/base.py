"""A format: what lies on disk, whoever wrote it. One object knows how one artifact's tensors are stored:
their layout and size, which of them are quantized, how they are read back, and how near its runtime must
come."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from quantize.artifact.artifact import Check, Note
from quantize.checkpoint.checkpoint import Checkpoint

#: How far a runtime's logits may be from the second reader's: mean Kullback-Leibler divergence in nats,
#: (reader || runtime). float32 on both sides: only the order of additions differs (1e-12 to 1e-10 seen).
KL_FLOAT32 = 1e-7


class Format(ABC):
    """Importing a format's file must be cheap: torch and what reads the files are imported inside
    functions."""

    #: runtime that serves the artifact: a name in ``quantize.runtimes.opening.RUNTIMES``
    runtime: ClassVar[str] = "transformers"
    #: what ``quantize.hf.load.storage_format`` calls a folder of it; empty: an unquantized one, or no folder
    storage: ClassVar[str] = ""
    #: programs known to load the artifact, for manifest and card
    loads_in: ClassVar[tuple[str, ...]] = ("transformers",)
    #: whether the artifact is an HF folder, which gets the source's tokenizer and generation config copied in
    hf_folder: ClassVar[bool] = True
    #: what the Hub calls the library that loads it: where none is named, it takes a config.json for a sign of
    #: transformers
    hub_library: ClassVar[str] = "transformers"
    #: tag of a published repository; none where empty
    hub_tag: ClassVar[str] = ""
    #: whether its bits are fewer than a checkpoint's, and said so in a repository's tags
    fewer_bits: ClassVar[bool] = True
    #: module and class that open the folder in Python, and what a card says before
    opened_by: ClassVar[tuple[str, str]] = ("transformers", "AutoModelForCausalLM")
    opening_advice: ClassVar[str] = ""
    #: what a repository that holds several artifacts of one model is called by; empty: each has its own
    shared_repository: ClassVar[str] = ""
    #: what reads the weights back, as the manifest's verification names it
    reader: ClassVar[str] = "quantize.numerics"
    #: Whether scales move from one tensor into the one before: of single tensors only the signs stay then.
    moves_scales: ClassVar[bool] = False
    #: Whether its runtime looks GELUs up in a table of float16, as ggml does.
    gelu_table: ClassVar[bool] = False

    @property
    def value_rounding(self) -> float | None:
        """The part of a value that storing takes from it, where each value is its source's, rounded; else
        None."""
        return None

    @property
    def kl_tolerance(self) -> float:
        """Of the runtime's logits against this format's reader, mean divergence in nats: float32's own,
        unless the runtime rounds more."""
        return KL_FLOAT32

    def activation_types(self, stage: Path) -> dict[str, str] | None:
        """Source name -> how the runtime rounds the activations that meet that tensor; None: not at all."""
        return None

    def float32_kernels(self, stage: Path) -> bool:
        """Whether its runtime has slower kernels, too, which compute in float32."""
        return False

    def fits(self, kind: str) -> bool:
        """Whether a quantized tensor may be stored as ``kind`` (a value of ``quantized``)."""
        return True

    def output_bytes(self, checkpoint: Checkpoint, expected: frozenset[str]) -> int | None:
        """Bytes of the artifact's files, the manifest left out, from headers; None where that is not
        known."""
        return None

    def tokenizer_checks(
        self,
        stage: Path,
        checkpoint: Checkpoint,
        tokenize: Callable[[str], list[int]],
        allowed: list[Note] | None,
    ) -> list[Check]:
        """Where the tokenizer is not the source's own files: whether what the runtime makes of texts is the
        source's. ``allowed``: where to note what another file would mend; None where that fails."""
        return []

    def checksums(self, stage: Path) -> dict[str, int]:
        """CRC-32 of the bytes that a reader of the files under ``stage`` takes for each tensor, by its name
        in the file; empty where engines of the format do not hand over theirs."""
        return {}

    @abstractmethod
    def quantized(self, stage: Path) -> dict[str, str]:
        """Tensors that are quantized in the files under ``stage``: HF (source) name -> storage type, read
        from the file."""

    @abstractmethod
    def dequantize(self, stage: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
        """The second reader: (HF name, float32 array of the source's shape) for every weight of the source,
        read from the files under ``stage`` by code that is neither the engine's that wrote them nor the
        runtime's that serves them."""
