"""The text model of a checkpoint that also sees or hears: its part of the config, its tensors under the names
of a checkpoint of text alone, and what of the rest is left out."""

from collections.abc import Iterable, Mapping
from typing import Any

from quantize.artifact.artifact import Note

#: what a text model's ``model.`` is called inside a larger one, newest spelling first
BODIES = ("model.language_model.", "language_model.model.", "model.text_model.")
HEADS = ("language_model.lm_head.", "model.lm_head.")
#: first parts of the names of towers and projectors
_OTHERS = (
    "vision_tower.", "vision_model.", "visual.", "vision_embed_tokens.", "vision_encoder.",
    "embed_vision.", "multi_modal_projector.", "mm_projector.", "patch_merger.",
    "audio_tower.", "embed_audio.",
)  # fmt: skip


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with what its ``text_config`` says on top. The outer config says what the model is, and
    whether it ties its head: transformers asks that one."""
    nested = config.get("text_config")
    if not isinstance(nested, dict):
        return dict(config)
    outer = ("architectures", "model_type", "tie_word_embeddings")
    return {**config, **nested, **{key: config[key] for key in outer if config.get(key) is not None}}


def text_name(name: str, there: Iterable[str]) -> str:
    """How ``name``, of a checkpoint of text alone, is called among the names that are ``there``."""
    body, head = name.removeprefix("model."), name.removeprefix("lm_head.")
    if name.startswith("model."):
        names = [prefix + body for prefix in BODIES]
    else:
        names = [prefix + head for prefix in HEADS] if name.startswith("lm_head.") else []
    return next((each for each in names if each in there), name)


def also_sees(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's config tells of a tower for images, or of one for sound."""
    return any(isinstance(config.get(part), dict) for part in ("vision_config", "audio_config"))


def is_other(name: str) -> bool:
    """Whether a tensor is of a part that is no text model."""
    return name.removeprefix("model.").startswith(_OTHERS)


def others_note(names: Iterable[str]) -> list[Note]:
    first = sorted({name.removeprefix("model.").split(".")[0] for name in names})
    if not first:
        return []
    why = "a GGUF of a text model has no place for them; llama.cpp reads images and sound from a second file"
    return [Note(tensor="*", what=f"left out: {', '.join(first)}", why=why)]
