"""Which experts a token goes to is a choice, and rounding turns a close one over: how far that may move a
model's logits."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

#: a router's input differs by this part at least between two computations in float32: the order of their
#: additions
LEAST = 1e-6


def routers(model: "torch.nn.Module") -> dict[str, "torch.nn.Module"]:
    """The layers that choose experts: one row of weights an expert."""
    config: Any = model.config.get_text_config()  # type: ignore[operator,union-attr]
    counts = {
        getattr(config, key, None)
        for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    } | {getattr(getattr(config, "ffn_config", None), "moe_num_experts", None)}
    counts -= {None, 0, 1}
    found = {}
    for name, module in model.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if (
            weight is not None
            and weight.ndim == 2
            and weight.shape[0] in counts
            and {"gate", "router"} & set(name.split(".")[-2:])
        ):
            found[name] = module
    return found


class Inputs:
    """What met each router, by its name, all positions in one array: 4 bytes a value of the hidden state."""

    def __init__(self) -> None:
        self._kept: dict[str, list[np.ndarray]] = {}

    def watch(self, model: "torch.nn.Module") -> None:
        for name, module in routers(model).items():
            kept = self._kept.setdefault(name, [])
            module.register_forward_pre_hook(
                lambda _, inputs, kept=kept: kept.append(_flat(inputs[0]).cpu().numpy().copy())
            )

    def apart(self, other: "Inputs") -> dict[str, float]:
        """Root mean square of the difference, as a part of that of the input; ``LEAST`` at least."""
        found = {}
        for name, kept in self._kept.items():
            mine, theirs = np.concatenate(kept), np.concatenate(other._kept[name])
            size = float(np.sqrt(np.square(mine - theirs).mean() / max(float(np.square(mine).mean()), 1e-30)))
            found[name] = max(LEAST, size)
        return found


def disturb(model: "torch.nn.Module", sizes: dict[str, float], seed: int) -> None:
    """Add noise to what meets each router: normal, ``sizes[name]`` of the token's own root mean square."""
    import torch

    random = torch.Generator().manual_seed(seed)

    def add(_: Any, inputs: tuple[Any, ...], size: float) -> tuple[Any, ...]:
        x = inputs[0]
        noise = (
            torch.randn(x.shape, generator=random, dtype=x.dtype) * x.square().mean(-1, keepdim=True).sqrt()
        )
        return (x + size * noise.to(x.device), *inputs[1:])

    for name, module in routers(model).items():
        module.register_forward_pre_hook(lambda module, inputs, size=sizes[name]: add(module, inputs, size))


def _flat(hidden: "torch.Tensor") -> "torch.Tensor":
    return hidden.detach().float().reshape(-1, hidden.shape[-1])
