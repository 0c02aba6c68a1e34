"""Keys and values on their way into a model's cache: seen, or rounded as a runtime with an 8-bit cache does
it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

from quantize.errors import Unsupported

if TYPE_CHECKING:
    import torch

#: (keys, values), each (batch, heads, tokens, columns), keys with their positions in -> what is kept instead
Keep = Callable[["torch.Tensor", "torch.Tensor"], "tuple[torch.Tensor, torch.Tensor]"]
_ARGUMENT = "past_key_values"


class _Cache:
    """In the place of a cache, or of none; everything but ``update`` is that of the one behind."""

    def __init__(self, behind: Any, keep: Keep):
        self._behind, self._keep = behind, keep

    def update(self, keys: "torch.Tensor", values: "torch.Tensor", *args: Any, **kwargs: Any) -> Any:
        kept = self._keep(keys, values)
        return self._behind.update(*kept, *args, **kwargs) if self._behind is not None else kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


def keep_states(attention: "torch.nn.Module", keep: Keep) -> Any:
    """From now on ``attention`` works with what ``keep`` makes of its keys and values, whether the model is
    given a cache or not. Returns the hook. Errors: Unsupported where it takes no cache of transformers 5."""
    if _ARGUMENT not in signature(attention.forward).parameters:
        raise Unsupported(f"{type(attention).__name__} takes no {_ARGUMENT}: its cache cannot be watched")

    def within(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, _ARGUMENT: _Cache(kwargs.get(_ARGUMENT), keep)}

    return attention.register_forward_pre_hook(within, with_kwargs=True)


@contextmanager
def watching_states(
    attention: "torch.nn.Module", see: Callable[["torch.Tensor", "torch.Tensor"], None]
) -> Iterator[None]:
    """While inside, ``see`` is told of all keys and values; they stay what they are."""

    def keep(keys: "torch.Tensor", values: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        see(keys, values)
        return keys, values

    hook = keep_states(attention, keep)
    try:
        yield
    finally:
        hook.remove()
