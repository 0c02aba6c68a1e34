"""Models that also see or hear: the class of transformers that opens the whole of one, and which of its
modules are the text model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def auto_class(config: "Mapping[str, Any] | Any") -> Any:
    """AutoModelForCausalLM, or AutoModelForImageTextToText where config.json (a mapping, or transformers'
    object) is that of a model of text and images: ``architectures`` names its class, or transformers has no
    other."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WHOLE,
    )

    fields = config if isinstance(config, Mapping) else config.__dict__
    kind = str(fields.get("model_type") or getattr(config, "model_type", ""))
    names = fields.get("architectures") or [""]
    if kind in WHOLE and (kind not in CAUSAL or names[0] == WHOLE[kind] != CAUSAL[kind]):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def text_model(model: "PreTrainedModel") -> str:
    """Name of the module that is the text model of ``model``, without its output layer where that lies
    outside; empty where ``model`` is nothing else."""
    if model.config.get_text_config() is model.config:
        return ""
    decoder: Any = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), "")


def beside_text(model: "PreTrainedModel") -> tuple[str, ...]:
    """Names of the outermost modules that are neither the text model, nor its output layer, nor hold one of
    them: towers and projectors."""
    text = text_model(model)
    if not text:
        return ()
    head: Any = model.get_output_embeddings()
    kept = {text, *(name for name, module in model.named_modules() if module is head)}
    found: list[str] = []

    def walk(module: "torch.nn.Module", prefix: str) -> None:
        for own, child in module.named_children():
            name = prefix + own
            if name in kept:
                continue
            if any(each.startswith(f"{name}.") for each in kept):
                walk(child, f"{name}.")
            else:
                found.append(name)

    walk(model, "")
    return tuple(found)


def lies_in(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a module or parameter is one of ``modules``, or lies in one."""
    return any(name == each or name.startswith(f"{each}.") for each in modules)


def ties_head(model: "PreTrainedModel") -> bool:
    """Whether the output layer is the embedding. Of a model that also sees, its own config says so, whatever
    that of the text model has."""
    config = model.config.get_text_config()
    if config is model.config:
        return bool(config.tie_word_embeddings)
    head = model.get_output_embeddings()
    tied = getattr(model, "all_tied_weights_keys", {})
    return any(module is head and f"{name}.weight" in tied for name, module in model.named_modules())
