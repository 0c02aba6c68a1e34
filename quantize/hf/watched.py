"""How a model's own code uses its linear layers, seen by running it on the meta device: only shapes, no
weights, no arithmetic.

A library that packs a layer's weight replaces the layer's forward. Code that reads ``layer.weight`` itself
(Mamba's ``dt_proj.weight @ x``) gets the packed bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantize.errors import Unsupported
from quantize.hf.load import model_without_weights
from quantize.quiet import quiet

if TYPE_CHECKING:
    import torch

TOKENS = 8


@dataclass(frozen=True)
class Uses:
    """Module names: ``direct``, whose weight is used outside the layer's forward; ``strided``, which are
    given inputs that do not lie in memory row after row."""

    direct: frozenset[str] = frozenset()
    strided: frozenset[str] = frozenset()


NONE = Uses()


def linear_uses(folder: Path, *, trust_remote_code: bool = False) -> Uses:
    """Nothing found where the model cannot be run so (its code looks at values: routers of experts)."""
    import torch

    try:
        model = model_without_weights(folder, "float32", trust_remote_code=trust_remote_code)
    except Unsupported:  # said by those who need the model
        return NONE
    direct: set[str] = set()
    strided: set[str] = set()
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear:
            _watch(module, name, direct, strided)
    head = model.get_output_embeddings()
    ids = torch.zeros((1, TOKENS), dtype=torch.long, device="meta")
    if without_values(lambda: model(input_ids=ids, use_cache=False)) is not None:
        return NONE
    own = {name for name, module in model.named_modules() if module is head}
    return Uses(frozenset(direct - own), frozenset(strided - own))


def without_values(run: Callable[[], Any]) -> Exception | None:
    """Run a model's own code on the meta device; the exception where it fails there: any, as it may look at
    values that are none."""
    import torch

    try:
        with quiet(), torch.no_grad(), torch.device("meta"):
            run()
    except Exception as error:
        return error
    return None


def _watch(module: "torch.nn.Module", name: str, direct: set[str], strided: set[str]) -> None:
    inside = False

    class Watched(type(module)):  # type: ignore[misc]
        def __getattr__(self, key: str) -> Any:
            if key == "weight" and not inside:
                direct.add(name)
            return super().__getattr__(key)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            nonlocal inside
            if not x.is_contiguous():
                strided.add(name)
            inside = True
            try:
                return super().forward(x)
            finally:
                inside = False

    module.__class__ = Watched
