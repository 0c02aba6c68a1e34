"""A checkpoint's hyperparameters under one set of names, whatever transformers version wrote the config."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from quantize.checkpoint.config import FIELDS, Number, Whole
from quantize.errors import BadInput, Unsupported

PER_LAYER = frozenset(name for name, kind in FIELDS.items() if isinstance(kind, Whole | Number) and kind.many)


class Hyperparameters:
    """``config`` over ``defaults`` (those of the config class, for keys a config may leave out)."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any], source: str = "config.json"):
        self.config = {
            **defaults,
            **{key: value for key, value in config.items() if value is not None or key not in defaults},
        }
        if not self.config.get("head_dim", 1):  # 0 means the same as null
            del self.config["head_dim"]
        self.source = source

    def find(self, *names: str) -> Any:
        """The first of ``names`` that has a value in the config, else None. Errors: Unsupported where there
        is one per layer."""
        for name in names:
            value = self.config.get(name)
            if isinstance(value, list) and name in PER_LAYER:
                raise Unsupported(
                    f"{self.source}: config.json gives {name} layer "
                    "by layer; this architecture has one number"
                )
            if value is not None:
                return value
        return None

    def need(self, *names: str) -> Any:
        """As ``find``. Errors: BadInput where the config has none of them."""
        value = self.find(*names)
        if value is None:
            raise BadInput(
                f"{self.source}: config.json has no {' nor '.join(names)}, which this architecture needs"
            )
        return value

    def __getitem__(self, name: str) -> Any:
        return self.need(name)

    @cached_property
    def layers(self) -> int:
        return int(self.need("num_hidden_layers", "n_layer", "n_layers", "num_layers"))

    @cached_property
    def heads(self) -> int:
        return int(self.need("num_attention_heads", "n_head", "n_heads"))

    @cached_property
    def kv_heads(self) -> int:
        return int(self.find("num_key_value_heads", "n_kv_heads", "num_kv_heads") or self.heads)

    @cached_property
    def hidden(self) -> int:
        return int(self.need("hidden_size", "n_embd"))

    @cached_property
    def head_dim(self) -> int:
        return int(self.find("head_dim") or self.hidden // self.heads)

    @cached_property
    def experts(self) -> int:
        return int(self.find("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts") or 0)
