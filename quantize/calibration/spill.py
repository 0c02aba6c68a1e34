"""Keeps the tensors of many paused passes in files where memory does not hold them all."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class _Held:
    storages: "dict[int, torch.UntypedStorage]"
    sizes: dict[int, int]
    file: Path | None = None
    written: bool = False


class Spill:
    """Of each batch, by number: the memory of the tensors in what it paused with. At most ``budget_bytes`` of
    all batches together stay in memory, the rest lies in files in ``folder``; None: no limit.

    Batches are visited in turn, again and again, so the first ones stay and the others go to files: of any
    choice, that reads the fewest bytes. A file holds raw bytes, so nothing is rounded.
    """

    def __init__(self, folder: Path, budget_bytes: int | None, fixed: frozenset[int] = frozenset()):
        self._folder, self._budget, self._fixed = folder, budget_bytes, fixed
        self._held: dict[int, _Held] = {}
        self._resident = 0

    def put(self, number: int, values: Any) -> None:
        """``values``: arguments of a call; their tensors' memory may go until ``get``."""
        storages = {}
        for tensor in tensors_in(values):
            storage = tensor.untyped_storage()
            assert storage.nbytes() or not tensor.numel(), "two batches share memory that one of them spilled"
            if storage.data_ptr() not in self._fixed and storage.nbytes() and storage.resizable():
                storages[storage._cdata] = storage
        sizes = {key: storage.nbytes() for key, storage in storages.items()}
        size = sum(sizes.values())
        held = self._held[number] = _Held(storages, sizes)
        if self._budget is None or self._resident + size <= self._budget:
            self._resident += size
            return
        held.file = self._folder / f"batch-{number}"
        self.leave(number)

    def get(self, number: int) -> None:
        """The batch's tensors hold their values again."""
        held = self._held[number]
        if held.file is None:
            return
        with open(held.file, "rb") as file:
            for key, storage in held.storages.items():
                storage.resize_(held.sizes[key])
                _bytes_of(storage).copy_(_read(file, held.sizes[key]))

    def leave(self, number: int) -> None:
        """After ``get``, with the values unchanged: the memory may go again."""
        held = self._held[number]
        if held.file is None:
            return
        if not held.written:
            with open(held.file, "wb") as file:
                for storage in held.storages.values():
                    # a copy: memory that numpy has seen cannot be resized
                    file.write(_bytes_of(storage).clone().cpu().numpy().data)
            held.written = True
        for storage in held.storages.values():
            storage.resize_(0)

    def drop(self, number: int) -> None:
        """After ``get``: the batch goes on, and its tensors are its own."""
        held = self._held.pop(number)
        if held.file is None:
            self._resident -= sum(held.sizes.values())
        else:
            held.file.unlink(missing_ok=True)


def tensors_in(values: Any) -> "Iterator[torch.Tensor]":
    """In tuples, lists and dicts, however deep."""
    import torch

    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        for each in values.values():
            yield from tensors_in(each)
    elif isinstance(values, (tuple, list)):
        for each in values:
            yield from tensors_in(each)


def _bytes_of(storage: "torch.UntypedStorage") -> "torch.Tensor":
    import torch

    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _read(file: Any, size: int) -> "torch.Tensor":
    import numpy as np
    import torch

    return torch.from_numpy(np.frombuffer(bytearray(file.read(size)), np.uint8))
