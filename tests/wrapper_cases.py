"""Small models that also see, of transformers' own classes: a text model, a tower and a projector, the demo's
tokenizer, all weights random."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conftest import ROOT
from decoder_cases import CASES, SMALL

VISION: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "depth": 2, "num_heads": 2,
    "num_attention_heads": 2, "out_hidden_size": 64, "image_size": 32, "patch_size": 16, "head_dim": 32,
    "num_position_embeddings": 4, "deepstack_visual_indexes": [0], "vision_use_head": False,
    "fullatt_block_indexes": [1], "projector_input_dim": 64, "projector_output_dim": 64,
    "vision_output_dim": 64, "num_channels": 3, "pixel_shuffle_ratio": 0.5,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e6}
#: model type -> settings of the text model over SMALL
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {"tie_word_embeddings": True, "query_pre_attn_scalar": 16, "sliding_window": 16},
    "qwen2_5_vl": {"rope_parameters": {**ROPE, "mrope_section": [2, 3, 3]}},
    "qwen3_vl": {
        "tie_word_embeddings": True,
        "rope_parameters": {**ROPE, "mrope_section": [2, 3, 3], "mrope_interleaved": True},
    },
    "llama4": {
        "intermediate_size_mlp": 96, "interleave_moe_layer_step": 2, "num_local_experts": 4,
        "num_experts_per_tok": 1,
    },
    "mistral3": {"model_type": "mistral", "sliding_window": None},
}  # fmt: skip
FOUR_LAYERS = {"num_hidden_layers": 4, "layer_types": [*3 * ["linear_attention"], "full_attention"]}
#: rows of the table beside those -> their model type, and settings of the text model
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4": ("gemma4", {**CASES["gemma4_text"], "pad_token_id": 0}),
    "mistral3 (ministral3)": ("mistral3", {"model_type": "ministral3"}),
    "qwen3_5": ("qwen3_5", {**CASES["qwen3_5_text"], **FOUR_LAYERS}),
    "qwen3_5_moe": ("qwen3_5_moe", {**CASES["qwen3_5_moe_text"], **FOUR_LAYERS}),
    "qwen3_vl_moe": ("qwen3_vl_moe", {**CASES["qwen3_moe"], **WRAPPERS["qwen3_vl"], "norm_topk_prob": True}),
}
#: the wrappers of the table
NAMES = (*WRAPPERS, *MORE)


def make_wrapper(
    name: str, folder: Path, dtype: str = "float32", text_config: Mapping[str, Any] | None = None, **more: Any
) -> Path:
    """``name``: of ``NAMES``. As transformers saves it in ``dtype``, with what a processor would read;
    ``text_config``: settings over the text model's; ``more``: the outer config's."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type, own = MORE[name] if name in MORE else (name, WRAPPERS[name])
    text = {**SMALL, **own, **(text_config or {})}
    outer = {"text_config": text, "vision_config": VISION, "tie_word_embeddings": text["tie_word_embeddings"]}
    config = CONFIG_MAPPING[model_type](**{**outer, **more})
    torch.manual_seed(7)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.ndim == 1 and model_type != "gemma3" else 0.0
            parameter.copy_(centre + 0.15 * torch.randn(parameter.shape))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "checkpoint" / file, folder / file)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}\n')
    return folder
