"""A checkpoint as a folder of files, for libraries that read weights from one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.reader import IN_FILES
from quantize.checkpoint.tensors import Entry, write_folder
from quantize.errors import StepFailed
from quantize.staging import temporary_folder


@contextmanager
def materialised(checkpoint: Checkpoint, scratch: Path | None = None) -> Iterator[Path]:
    """Its own folder, where the weights lie in files; else one under ``scratch`` that holds them, one tensor
    in memory at a time as it is written, removed afterwards.

    Errors: StepFailed where a weight is NaN or Inf, or the disk is full.
    """
    if checkpoint.reader is IN_FILES:
        yield checkpoint.folder
        return
    with temporary_folder("weights", scratch) as folder:
        try:
            shutil.copytree(checkpoint.folder, folder, dirs_exist_ok=True)
            entries = [Entry(name, info.dtype, info.shape) for name, info in checkpoint.tensors.items()]
            write_folder(folder, entries, checkpoint.read)
        except OSError as error:
            raise StepFailed(
                f"{folder}: cannot hold the weights of {checkpoint.source} ({error.strerror}), "
                "which the library of this method reads from files; set TMPDIR to a larger disk"
            ) from None
        yield folder
