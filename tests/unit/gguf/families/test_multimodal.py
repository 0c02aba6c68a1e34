"""Text models of larger ones, planned from headers alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo
from quantize.errors import Unsupported
from quantize.gguf.families.multimodal import text_config
from quantize.gguf.families.operations import Part, Transpose
from quantize.gguf.families.plan import plan

TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256, "hidden_act": "silu",
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}  # fmt: skip
LAYER = {
    "input_layernorm": (64,), "post_attention_layernorm": (64,), "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
    "self_attn.q_norm": (16,), "self_attn.k_norm": (16,),
    "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96),
}  # fmt: skip


def headers(body: str, **more: tuple[int, ...]) -> Checkpoint:
    shapes: dict[str, tuple[int, ...]] = {
        f"{body}embed_tokens.weight": (128, 64),
        f"{body}norm.weight": (64,),
        "lm_head.weight": (128, 64),
        **{f"{body}layers.0.{name}.weight": shape for name, shape in LAYER.items()},
        **{name.replace("__", "."): shape for name, shape in more.items()},
    }
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "text_config": TEXT,
        "vision_config": {"deepstack_visual_indexes": [1, 2]}, "tie_word_embeddings": False,
    }  # fmt: skip
    infos = {name: TensorInfo(name, shape, "BF16") for name, shape in shapes.items()}
    return Checkpoint(Path("/nonexistent"), "tiny", None, config, infos)


@pytest.mark.parametrize("body", ["model.language_model.", "language_model.model.", "model."])
def test_every_spelling_of_the_text_model(body: str) -> None:
    found = plan(headers(body, model__visual__pos_embed__weight=(4, 32), visual__norm__weight=(32,)))
    assert found.architecture == "qwen3vl"
    assert found.kvs["qwen3vl.n_deepstack_layers"][0] == 2
    assert found.kvs["qwen3vl.rope.dimension_sections"][0] == [2, 3, 3, 0]
    sources = {source for mapped in found.tensors for source in mapped.sources}
    assert f"{body}layers.0.self_attn.q_norm.weight" in sources
    assert found.left_out == {"model.visual.pos_embed.weight", "visual.norm.weight"}
    assert [(note.tensor, note.what) for note in found.notes] == [("*", "left out: visual")]


def test_what_is_no_tower_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"model\.memory\.weight has no place"):
        plan(headers("model.language_model.", model__memory__weight=(4, 32)))


def test_outer_config_says_what_the_model_is() -> None:
    config = {
        "architectures": ["A"], "model_type": "outer", "tie_word_embeddings": True,
        "text_config": {"model_type": "inner", "tie_word_embeddings": False, "hidden_size": 8},
    }  # fmt: skip
    merged = text_config(config)
    assert (merged["model_type"], merged["tie_word_embeddings"], merged["hidden_size"]) == ("outer", True, 8)
    assert text_config({"hidden_size": 3}) == {"hidden_size": 3}


def test_shape_of_what_a_part_is_of() -> None:
    for part, whole in (
        (Part((2, 6), 0, 1, 2, lead=1), (4, 12, 5)),
        (Part((3, 4), 1, 0, 3, keep=True), (12, 5)),
        (Part((2, 6), 0, 0, 1, Transpose()), (12, 5)),
    ):
        piece = part.build([np.zeros(whole, np.float32)])
        assert part.source_shapes(piece.shape, 1) == [whole]
        assert part.shape([whole]) == piece.shape
