"""Packed tensors are told by their names and shapes, whoever packed them."""

from pathlib import Path

import pytest

from quantize.checkpoint.safetensors_header import StoredTensor
from quantize.inspection.tensors import folder_weights, part_of

FILE = Path("model.safetensors")


def stored(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, StoredTensor]:
    """As a header has them."""
    return {name: StoredTensor(name, shape, dtype, FILE, 0) for name, (dtype, shape) in tensors.items()}


LAYER = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize(
    ("tensors", "kind", "weights"),
    [
        # GPTQ of 64 outputs and 256 inputs: 4 bits in groups of 128; 3 bits; AWQ packs along the outputs
        ({"qweight": ("I32", (32, 64)), "qzeros": ("I32", (2, 8)), "scales": ("F16", (2, 64)),
          "g_idx": ("I32", (256,))}, "int4 g128", 64 * 256),
        ({"qweight": ("I32", (24, 64)), "qzeros": ("I32", (2, 6)), "scales": ("F16", (2, 64)),
          "g_idx": ("I32", (256,))}, "int3 g128", 64 * 256),
        ({"qweight": ("I32", (256, 8)), "qzeros": ("I32", (1, 8)), "scales": ("F16", (1, 64))},
         "int4 per channel", 64 * 256),
        ({"weight": ("U8", (8192, 1)), "weight.absmax": ("U8", (256,)), "weight.quant_map": ("F32", (16,)),
          "weight.nested_absmax": ("F32", (1,)), "weight.nested_quant_map": ("F32", (256,)),
          "weight.quant_state.bitsandbytes__nf4": ("U8", (120,))}, "nf4 double", 64 * 256),
        ({"weight": ("I8", (64, 256)), "SCB": ("F32", (64,)), "weight_format": ("U8", ())}, "int8", 64 * 256),
        ({"weight._data": ("I8", (64, 256)), "weight._scale": ("BF16", (64, 1)), "input_scale": ("BF16", ()),
          "output_scale": ("BF16", ())}, "int8", 64 * 256),
        ({"weight._data._data": ("U8", (64, 128)), "weight._scale": ("BF16", (128, 1)),
          "weight._shift": ("BF16", (128, 1)), "input_scale": ("BF16", ())}, "int4 g128", 64 * 256),
        ({"weight": ("F8_E4M3", (64, 256)), "weight_scale_inv": ("F32", (1, 2))}, "F8_E4M3 blocks", 64 * 256),
        ({"weight_packed": ("I32", (64, 32)), "weight_scale": ("BF16", (64, 2)),
          "weight_shape": ("I64", (2,))}, "int4 g128", 64 * 256),
        ({"weight_packed": ("U8", (64, 128)), "weight_scale": ("F8_E4M3", (64, 16)),
          "weight_global_scale": ("F32", (1,))}, "fp4 g16", 64 * 256),
        ({"weight": ("U32", (64, 32)), "scales": ("BF16", (64, 4)), "biases": ("BF16", (64, 4))},
         "int4", 64 * 256),
        ({"weight_blocks": ("U8", (64, 8, 16)), "weight_scales": ("U8", (64, 8))}, "mxfp4", 64 * 256),
        ({"weight": ("BF16", (64, 256))}, "BF16", 64 * 256),
        ({"weight": ("I32", (64, 256))}, "I32", None),  # nobody says how that is packed
    ],
)  # fmt: skip
def test_one_matrix_however_it_is_packed(
    tensors: dict[str, tuple[str, tuple[int, ...]]], kind: str, weights: int | None
) -> None:
    found = stored({LAYER + ending: entry for ending, entry in tensors.items()})
    (weight,) = folder_weights(found, {})
    assert weight.name == "model.layers.0.mlp.up_proj.weight"
    assert (weight.type, weight.weights, weight.part) == (kind, weights, "mlp")
    assert weight.size_bytes == sum(info.size_bytes for info in found.values())


def test_buffers_are_no_weights_and_a_scale_without_a_weight_is_one() -> None:
    found = stored(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (32,)), "act.scales": ("F16", (8,))}
    )
    assert [(w.name, w.weights) for w in folder_weights(found, {})] == [("act.scales", 8)]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("model.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.layers.3.self_attn.q_norm.weight", "norms"),
        ("model.layers.3.input_layernorm.weight", "norms"),
        ("transformer.h.0.ln_1.bias", "norms"),
        ("transformer.blocks.0.norm_attn_norm.norm_1.weight", "norms"),
        ("transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight", "attention"),
        ("model.layers.3.linear_attn.in_proj_qkvz.weight", "attention"),
        ("backbone.layers.3.mixer.in_proj.weight", "attention"),
        ("model.layers.3.mlp.gate_proj.weight", "mlp"),
        ("transformer.h.3.mlp.c_fc.weight", "mlp"),
        ("model.layers.3.mlp.experts.7.up_proj.weight", "experts"),
        ("model.layers.3.mlp.gate.weight", "experts"),
        ("model.layers.3.mlp.shared_experts.up_proj.weight", "experts"),
        ("model.layers.3.block_sparse_moe.gate.weight", "experts"),
        ("model.vision_tower.layers.0.self_attn.q_proj.weight", "other"),
    ],
)
def test_parts_of_a_folder(name: str, part: str) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("token_embd.weight", "embedding"),
        ("output.weight", "head"),
        ("output_norm.weight", "norms"),
        ("blk.0.attn_q.weight", "attention"),
        ("blk.0.attn_norm.weight", "norms"),
        ("blk.0.ffn_up.weight", "mlp"),
        ("blk.0.ffn_up_exps.weight", "experts"),
        ("blk.0.ffn_gate_inp.weight", "experts"),
        ("blk.0.ssm_in.weight", "attention"),
        ("rope_freqs.weight", "other"),
    ],
)
def test_parts_of_a_gguf(name: str, part: str) -> None:
    assert part_of(name, gguf=True) == part
