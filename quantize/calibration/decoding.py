"""Drawing tokens one by one from a model, for many rows at once, without what makes that slow: a cache that
is copied at every token, and attention that copies keys and values for each group of queries."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: ids whose probabilities are summed at first, of which then one is chosen
BLOCK = 256
#: what keeps a random number times a sum below it, in float64
_BELOW = 1 - 2.0**-40


def draw(scores: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """(rows,) int64: an id for each row of ``scores`` (rows, ids), finite float32 logits, by their softmax;
    one uniform number of ``generator``, on the CPU, a row.

    By inverting the distribution function, at first over blocks of ids, then within one: probabilities and
    their sums over blocks in float32, all else in float64, so that each is met to about 1e-6 of itself. An id
    without probability is never drawn.
    """
    import torch

    rows, ids = scores.shape
    chances = torch.exp(scores - scores.amax(-1, keepdim=True))
    if ids % BLOCK:
        chances = torch.nn.functional.pad(chances, (0, BLOCK - ids % BLOCK))
    blocks = chances.view(rows, -1, BLOCK)
    sums = blocks.sum(-1).double()
    up_to = sums.cumsum(-1)
    uniform = torch.rand(rows, 1, dtype=torch.float64, generator=generator).to(scores.device)
    wanted = uniform * up_to[:, -1:] * _BELOW
    block = torch.searchsorted(up_to, wanted, right=True)
    inside = blocks[torch.arange(rows, device=scores.device), block[:, 0]].double().cumsum(-1)
    mass = sums.gather(1, block)
    share = ((wanted - (up_to.gather(1, block) - mass)) / mass).clamp(0, 1)
    place = torch.searchsorted(inside, share * inside[:, -1:] * _BELOW, right=True)
    return (block * BLOCK + place)[:, 0]


@contextmanager
def quick_decoding(model: Any, length: int) -> Iterator[dict[str, Any]]:
    """Arguments of ``model.generate`` for rows of ``length`` tokens, while inside."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    before = FUNCTIONS["sdpa"]
    FUNCTIONS["sdpa"] = _grouped(before)
    try:
        takes = "past_key_values" in inspect.signature(model.forward).parameters
        usual = takes and model._supports_default_dynamic_cache()
        yield {"past_key_values": _cache(model, length)} if usual else {}
    finally:
        del FUNCTIONS["sdpa"]


def _grouped(attention: Any) -> Any:
    """transformers' ``attention``, where one token that may see all before it shares keys and values with
    others of its group: those are the queries of one head then."""

    def grouped(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
    ) -> tuple[Any, None]:
        import torch

        batch, heads, tokens, _ = query.shape
        groups = key.shape[1]
        special = any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "cache", "s_aux"))
        if tokens > 1 or groups == heads or attention_mask is not None or special:
            found: tuple[Any, None] = attention(module, query, key, value, attention_mask, **kwargs)
            return found
        joined = query.reshape(batch, groups, heads // groups, -1)
        output = torch.nn.functional.scaled_dot_product_attention(
            joined, key, value, scale=kwargs.get("scaling")
        )
        return output.reshape(batch, 1, heads, -1), None

    return grouped


def _cache(model: Any, length: int) -> Any:
    """transformers' own for ``model``, whose layers that only grow have place for ``length`` tokens from the
    start."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class Growing(DynamicLayer):
        """Keys and values (rows, heads, tokens, width), written where they stay."""

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.places = [
                    each.new_empty((*each.shape[:2], length, each.shape[3]))
                    for each in (key_states, value_states)
                ]
                self.there = 0
            first, self.there = self.there, self.there + key_states.shape[-2]
            for place, new in zip(self.places, (key_states, value_states), strict=True):
                place[:, :, first : self.there] = new
            self.keys, self.values = (place[:, :, : self.there] for place in self.places)
            return self.keys, self.values

    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [Growing() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
