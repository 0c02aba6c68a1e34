"""torchao: int8 weights, one scale for each row or group, without calibration. Quantized in memory as
transformers' TorchAoConfig does it, then saved, or run at once."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from packaging.version import Version

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.materialised import materialised
from quantize.checkpoint.tensors import write_config, write_state
from quantize.dtypes import dense
from quantize.engines.base import Computed, Conversion, Engine
from quantize.engines.in_memory import add_computed, stored_again, took
from quantize.errors import Unsupported
from quantize.hf.load import head_name, load_model
from quantize.hf.loaded import (
    ROUTER,
    beside_notes,
    experts_note,
    keep_dtypes,
    loaded,
    singly_noted,
)
from quantize.hf.names import (
    empty_model,
    kept_notes,
    linear_layers,
    own_linear_layers,
    renamed_again,
)
from quantize.hf.watched import linear_uses
from quantize.packages import install_command
from quantize.quiet import quiet
from quantize.recipe import RunOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

#: the first release whose files were read here
OLDEST = "0.18"


class TorchAo(Engine):
    distribution: ClassVar[str] = "torchao"
    needs: ClassVar[tuple[tuple[str, str], ...]] = (("torchao", "torchao"), ("accelerate", "accelerate"))
    extra: ClassVar[str] = "torchao"
    libraries: ClassVar[tuple[str, ...]] = ("torchao", "transformers", "torch")


TORCHAO = TorchAo()


def check_version(found: str) -> None:
    """Errors: Unsupported for a release that stores weights otherwise."""
    if Version(found) < Version(OLDEST):
        raise Unsupported(
            f"torchao {found} is installed, and {OLDEST} or newer is needed: earlier ones store weights "
            f"otherwise; install with: {install_command('', [f'torchao>={OLDEST}'])}"
        )


def quantizable(checkpoint: Checkpoint, group_size: int) -> frozenset[str]:
    """Modules whose weight is quantized."""
    direct = loaded(checkpoint).layers.uses.direct
    return _quantizable(empty_model(checkpoint, buffers=False), direct, group_size)


def _quantizable(model: "PreTrainedModel", direct: frozenset[str], group_size: int) -> frozenset[str]:
    """Linear layers of torch's own class, except the head, those whose weight other code takes (``direct``),
    and those whose inputs are no whole number of groups."""
    left = {head_name(model)} | direct | own_linear_layers(model) | renamed_again(model)
    linear = linear_layers(model)[0].items()
    return frozenset(n for n, (_, inputs) in linear if n not in left and not inputs % abs(group_size))


def write(checkpoint: Checkpoint, stage: Path, run: RunOptions, group_size: int) -> Conversion:
    """What transformers' save_pretrained would, under the source's config."""
    checkpoint.check_finite()
    found = loaded(checkpoint)
    layers = found.layers
    dtype = dense(checkpoint.dtype, "bfloat16")
    computed = Computed()
    with materialised(checkpoint, run.scratch) as folder:
        model = _load(folder, dtype, run)
    took(computed, model, layers, checkpoint)
    done = quantizable(checkpoint, group_size)
    _quantize(model, done, group_size)
    keep_dtypes(model, checkpoint, found.beside())
    add_computed(computed, model, found, checkpoint, _exact)
    state = model.state_dict()
    if layers.tied:
        state.pop(f"{layers.head}.weight", None)
    if found.merged:
        state = stored_again(state, found, set(done), checkpoint)
    with quiet():
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
        from transformers import TorchAoConfig

        tensors, metadata = flatten_tensor_state_dict(state)
        said = TorchAoConfig(_settings(group_size), modules_to_not_convert=_left(model, done))
    weight_bytes = write_state(stage, tensors, metadata=metadata)
    config = {key: value for key, value in checkpoint.config.items() if key != "torch_dtype"}
    quantization = json.loads(json.dumps(said.to_dict()))
    write_config(stage, {**config, "dtype": dtype, "quantization_config": quantization})
    notes = kept_notes(
        singly_noted(checkpoint), found.sources(set(done)), layers, "torchao", _reasons(checkpoint, done)
    )
    notes += filter(None, [experts_note(checkpoint, "torchao")])
    notes += beside_notes(checkpoint)
    return Conversion(
        weight_bytes,
        engine=TORCHAO.label,
        libraries=TORCHAO.libraries,
        notes=notes,
        details={"unquantized_dtype": dtype},
        computed=computed,
    )


def quantize_in_memory(folder: Path, group_size: int, dtype: str, run: RunOptions) -> "PreTrainedModel":
    """Loaded in ``dtype``, of which torchao's scales are computed, and quantized."""
    model = _load(folder, dtype, run)
    direct = linear_uses(folder, trust_remote_code=run.trust_remote_code).direct
    _quantize(model, _quantizable(model, direct, group_size), group_size)
    return model


def _load(folder: Path, dtype: str, run: RunOptions) -> "PreTrainedModel":
    return load_model(folder, dtype, run.resolved_device, trust_remote_code=run.trust_remote_code)


def _quantize(model: "PreTrainedModel", names: frozenset[str], group_size: int) -> None:
    with quiet():
        from torchao.quantization import quantize_

        quantize_(model, _settings(group_size), lambda module, name: name in names)


def _settings(group_size: int) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, PerGroup, PerRow

    return Int8WeightOnlyConfig(granularity=PerRow() if group_size < 0 else PerGroup(group_size))


def _exact(weight: Any) -> "torch.Tensor":
    import torch
    from torchao.quantization import Int8Tensor

    exact: torch.Tensor = weight.dequantize(torch.float32) if isinstance(weight.data, Int8Tensor) else weight
    return exact


def _left(model: "PreTrainedModel", done: frozenset[str]) -> list[str]:
    """What config.json names as not converted: linear layers that are as they were."""
    import torch

    return sorted(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in done
    )


def _reasons(checkpoint: Checkpoint, done: frozenset[str]) -> dict[str, str]:
    """Of each tensor that is kept though it is a linear layer's."""
    found = loaded(checkpoint)
    odd = set(found.layers.linear) - done - {found.layers.head} - found.layers.uses.direct - found.again
    return {
        **dict.fromkeys(found.sources(odd), "its inputs are no whole number of groups"),
        **dict.fromkeys(
            found.sources(set(found.layers.uses.direct)), "the model's own code multiplies with this weight"
        ),
        **dict.fromkeys(found.sources(set(found.again)), "transformers renames its weight when it opens it"),
        **dict.fromkeys(found.routers, ROUTER),
    }
