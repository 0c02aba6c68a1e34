"""A model's own forward pass as a coroutine that pauses wherever it calls one of its decoder layers.

Each batch runs in a thread of its own, of which exactly one, or the caller, runs at a time. What goes on
between the layers (masks, rotary embeddings, inputs of each layer, keys that layers share) is therefore
transformers' own code for every architecture, and this program need not know any of it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Call:
    """A decoder layer, by its name, is called with these arguments."""

    layer: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Finished:
    output: Any


class _Abandoned(BaseException):
    """Raised within a paused forward pass that nobody will continue."""


class Forward:
    """``run``: the whole forward pass. It starts with the first ``advance``."""

    def __init__(self, run: Callable[[], Any]):
        self._run, self._answer = run, None
        self._reached: Call | Finished | BaseException | None = None
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._ending = False
        self._thread = threading.Thread(target=self._body, daemon=True)

    def advance(self, output: Any = None) -> Call | Finished:
        """Give the layer's ``output`` to the pass where it paused; return where it gets to. Errors: whatever
        the model's code raises."""
        self._answer = output
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._paused.acquire()
        reached, self._reached = self._reached, None
        if isinstance(reached, BaseException):
            raise reached
        assert reached is not None
        return reached

    def close(self) -> None:
        """End the thread, wherever its pass is."""
        if self._thread.is_alive():
            self._ending = True
            self._go.release()
            self._thread.join()

    def _body(self) -> None:
        _here.forward = self
        try:
            self._reached = Finished(self._run())
        except _Abandoned:
            return
        except BaseException as error:  # raised again by whoever waits in ``advance``
            self._reached = error
        self._paused.release()

    def pause(self, call: Call) -> Any:
        """Called by a layer, in the thread of the pass."""
        self._reached = call
        del call
        self._paused.release()
        self._go.acquire()
        if self._ending:
            raise _Abandoned
        answer, self._answer = self._answer, None
        return answer


_here = threading.local()


@contextmanager
def pausing(layers: "Mapping[str, torch.nn.Module]") -> Iterator[None]:
    """While inside, each of ``layers`` that a ``Forward`` calls pauses it; elsewhere they run as always."""

    def replace(name: str, module: "torch.nn.Module") -> None:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            running = getattr(_here, "forward", None)
            return original(*args, **kwargs) if running is None else running.pause(Call(name, args, kwargs))

        module.forward = forward  # type: ignore[method-assign]

    for name, module in layers.items():
        replace(name, module)
    try:
        yield
    finally:
        for module in layers.values():
            del module.forward
