"""Plans from headers alone: the checkpoints here have no data behind them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType

from quantize.checkpoint.checkpoint import Checkpoint, TensorInfo
from quantize.errors import BadInput, Unsupported
from quantize.gguf.families.base import Mapped
from quantize.gguf.families.operations import (
    Add,
    Operation,
    Part,
    RopePermutation,
    Stack,
    SwapAxes,
    Transpose,
    UngroupQkv,
)
from quantize.gguf.families.plan import KNOWN, LEFT_OUT, plan, restore

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
LAYER = {
    "input_layernorm": (64,), "post_attention_layernorm": (64,), "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64), "mlp.gate_proj": (96, 64), "mlp.up_proj": (96,
    64),
    "mlp.down_proj": (64, 96),
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (128, 64),
    **{f"model.layers.0.{name}.weight": shape for name, shape in LAYER.items()},
    "model.norm.weight": (64,),
    "lm_head.weight": (128, 64),
}


def headers(config: dict[str, Any] | None = None, without: str = "", **more: tuple[int, ...]) -> Checkpoint:
    """A checkpoint whose tensors lie in a file that does not exist: reading any of them would fail."""
    shapes = {name: shape for name, shape in SHAPES.items() if name != without} | {
        k.replace("__", "."): v for k, v in more.items()
    }
    file = Path("/nonexistent/model.safetensors")
    infos = {name: TensorInfo(name, shape, "BF16") for name, shape in shapes.items()}
    return Checkpoint(file.parent, "tiny", None, CONFIG | (config or {}), infos)


def values(checkpoint: Checkpoint) -> dict[str, Any]:
    return {key: value for key, (value, _) in plan(checkpoint).kvs.items()}


def test_llama() -> None:
    family = plan(headers())
    assert family.architecture == "llama"
    assert {m.name: m.shape for m in family.tensors} == {
        "token_embd.weight": (128, 64), "output_norm.weight": (64,), "output.weight": (128, 64),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.ffn_norm.weight": (64,), "blk.0.attn_q.weight": (64, 64), "blk.0.attn_k.weight": (32, 64),
        "blk.0.attn_v.weight": (32, 64), "blk.0.attn_output.weight": (64, 64), "blk.0.ffn_gate.weight": (96,
        64),
        "blk.0.ffn_up.weight": (96, 64), "blk.0.ffn_down.weight": (64, 96),
    }  # fmt: skip
    assert [m.sources[0] for m in family.tensors] == list(SHAPES)  # in the checkpoint's order
    assert all(m.pure for m in family.tensors)
    u32, f32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32
    assert family.kvs == {
        "llama.block_count": (1, u32), "llama.context_length": (256, u32), "llama.embedding_length": (64,
        u32),
        "llama.feed_forward_length": (96, u32), "llama.attention.head_count": (4, u32),
        "llama.attention.head_count_kv": (2, u32),
        "llama.rope.freq_base": (10000.0, f32), "llama.attention.layer_norm_rms_epsilon": (1e-5, f32),
        "llama.attention.key_length": (16, u32), "llama.attention.value_length": (16, u32),
        "llama.vocab_size": (128, u32),
        "llama.rope.dimension_count": (16, u32),
    }  # fmt: skip


def test_pure_builds_work_on_bit_patterns() -> None:
    rng = np.random.default_rng(0)
    for mapped in plan(headers()).tensors:
        bits = [rng.integers(0, 1 << 16, SHAPES[name], dtype=np.uint16) for name in mapped.sources]
        built = mapped.build(bits)
        assert built.dtype == np.uint16
        assert np.array_equal(built.astype(np.float32), mapped.build([b.astype(np.float32) for b in bits]))


SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}},
        ),
        ({"rope_theta": 5e5, "rope_scaling": SCALING}, {"rope_parameters": {**SCALING, "rope_theta": 5e5}}),
    ],
    ids=["theta", "linear", "llama3"],
)
def test_old_and_new_config_spellings_agree(old: dict[str, Any], new: dict[str, Any]) -> None:
    one, other = plan(headers(old)), plan(headers(new))
    assert one.kvs == other.kvs
    assert one.kvs["llama.rope.freq_base"][0] == 5e5
    constants = [[m.build([]) for m in p.tensors if not m.sources] for p in (one, other)]
    assert [a.tolist() for a in constants[0]] == [a.tolist() for a in constants[1]]


def test_llama3_scaling_is_the_tensor_of_divisors() -> None:
    """Against the definition: below the high-frequency wavelength unscaled, above the low-frequency one by
    the factor."""
    first = plan(headers({"rope_theta": 1e4, "rope_scaling": SCALING})).tensors[0]
    assert (first.name, first.sources, first.pure) == ("rope_freqs.weight", (), False)
    divisors = first.build([])
    wavelengths = 2 * np.pi * 1e4 ** (np.arange(0, 16, 2) / 16)
    assert divisors.dtype == np.float32
    assert np.all(divisors[wavelengths < 64 / 4] == 1)
    assert np.all(divisors[wavelengths > 64 / 1] == 8)
    between = (wavelengths > 64 / 4) & (wavelengths < 64)
    assert between.any()
    assert np.all((divisors[between] > 1) & (divisors[between] < 8))


def test_refusals_name_what_is_wrong() -> None:
    with pytest.raises(Unsupported, match=r"NeverHeardOf.*known:.*LlamaForCausalLM.*Qwen3ForCausalLM"):
        plan(headers({"architectures": ["NeverHeardOf"]}))
    with pytest.raises(Unsupported, match=r"model\.layers\.0\.mlp\.up_proj\.weight is missing"):
        plan(headers(without="model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(Unsupported, match=r"model\.layers\.1\.mlp\.up_proj\.weight has no place"):
        plan(headers(model__layers__1__mlp__up_proj__weight=(96, 64)))
    with pytest.raises(Unsupported, match=r"activation 'relu'.*silu"):
        plan(headers({"hidden_act": "relu"}))
    with pytest.raises(Unsupported, match="rope scaling of type 'spiral'"):
        plan(headers({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}))
    with pytest.raises(Unsupported, match=r"partial_rotary_factor 0\.5; a llama rotates whole heads"):
        plan(headers({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.5}))
    with pytest.raises(Unsupported, match="by type of layer"):
        plan(headers({"rope_parameters": {"full_attention": {"rope_type": "default"}}}))
    with pytest.raises(BadInput, match="'linear' has no factor"):
        plan(headers({"rope_scaling": {"rope_type": "linear"}}))
    with pytest.raises(BadInput, match="short_factor has 3 values, its heads need 8"):
        plan(
            headers(
                {"rope_scaling": {"rope_type": "longrope", "long_factor": [1] * 8, "short_factor": [1] * 3}}
            )
        )
    with pytest.raises(BadInput, match=r"rows of 64.*hidden_size 128"):
        plan(headers({"hidden_size": 128}))
    with pytest.raises(BadInput, match=r"k_proj\.weight.*32 rows.*3 heads"):
        plan(headers({"num_key_value_heads": 3}))
    with pytest.raises(BadInput, match="no num_attention_heads"):
        plan(headers({"num_attention_heads": None}))


def test_buffers_are_not_left_over() -> None:
    plan(headers(model__layers__0__self_attn__rotary_emb__inv_freq=(8,)))


def test_mistral_window_is_noted_where_it_is_shorter_than_the_context() -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "sliding_window": 128}
    assert "sliding window of 128" in plan(headers(mistral)).notes[0].what
    assert not plan(headers({**mistral, "sliding_window": 256})).notes
    assert not plan(headers({**mistral, "sliding_window": None})).notes


def test_tied_head_is_written_once_more_only_where_llamacpp_needs_it() -> None:
    assert "output.weight" not in {
        m.name for m in plan(headers({"tie_word_embeddings": True}, without="lm_head.weight")).tensors
    }
    stable = {"architectures": ["StableLmForCausalLM"], "tie_word_embeddings": True}
    biases = {
        f"{n}__bias": (64,)
        for n in ("model__layers__0__input_layernorm", "model__layers__0__post_attention_layernorm")
    }
    biases["model__norm__bias"] = (64,)
    family = plan(headers(stable, without="lm_head.weight", **biases))
    by_name = {m.name: m for m in family.tensors}
    assert by_name["output.weight"].sources == by_name["token_embd.weight"].sources
    assert family.notes[0].tensor == "output.weight"
    with pytest.raises(Unsupported, match=r"lm_head\.weight is missing"):
        plan(headers({**stable, "tie_word_embeddings": False}, without="lm_head.weight", **biases))


def test_every_known_architecture_has_a_family() -> None:
    from importlib import import_module
    from types import SimpleNamespace

    config = {"num_hidden_layers": 2, "layer_types": ["attention"] * 2}  # of what some families ask
    for architecture, module in KNOWN.items():
        assert (
            import_module(f"quantize.gguf.families.{module}")
            .family(SimpleNamespace(architecture=architecture, config=config))
            .layer
        )


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [
        (RopePermutation(3), [(12, 5)]),
        (RopePermutation(3), [(12,)]),
        (Transpose(), [(3, 5)]),
        (SwapAxes(), [(2, 3, 5)]),
        (Stack(), [(3, 5), (3, 5)]),
        (UngroupQkv(3, 2), [(3 * 4 * 2, 5)]),
        (UngroupQkv(3), [(3 * 3 * 2,)]),
        (Add(1.0), [(7,)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Operation) else str(value),
)
def test_operations_invert(operation: Operation, shapes: list[tuple[int, ...]]) -> None:
    arrays = [
        np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 100 * i for i, shape in enumerate(shapes)
    ]
    built = operation.build(arrays)
    assert built.shape == operation.shape(shapes)
    assert all(np.array_equal(a, b) for a, b in zip(operation.restore(built, shapes), arrays, strict=True))
    assert operation.pure == (not isinstance(operation, Add))


def test_rope_permutation_pairs_the_halves() -> None:
    rows = np.arange(8)[:, None]
    assert RopePermutation(2).build([rows])[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_parts_of_one_source_are_joined() -> None:
    source = np.arange(24, dtype=np.float32).reshape(12, 2)
    parts = [Part((2, 3, 2), 1, start, stop) for start, stop in ((0, 2), (2, 3))]
    tensors = [
        Mapped(f"g{i}", p.shape([(12, 2)]), ("h",), p.build, lambda a, p=p: p.restore(a, [(12, 2)]), True)
        for i, p in enumerate(parts)
    ]
    built = {m.name: m.build([source]) for m in tensors}
    assert built["g0"].tolist() == source.reshape(2, 3, 2, 2)[:, :2].reshape(8, 2).tolist()
    ((name, whole),) = restore(tensors, built.__getitem__)
    assert name == "h"
    assert np.array_equal(whole, source)


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, 3),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 64}, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode": "lasttoken"}, 3),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None),
        ({"pooling_mode_max_tokens": True}, None),
        (None, None),
    ],
)
def test_pooling_of_an_embedding_model(
    config: dict[str, Any] | None, kept: int | None, tmp_path: Path
) -> None:
    modules = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
        ("3_Normalize", "Normalize"),
    ]
    types = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (tmp_path / "modules.json").write_text(json.dumps(types))
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    family = plan(replace(headers(), folder=tmp_path))
    assert family.kvs.get("llama.pooling_type", (None,))[0] == kept
    said = [note.what for note in family.notes]
    assert ("pooling not kept" in said) == (kept is None)
    assert "Dense after the pooling not kept" in said


def test_pooling_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "../elsewhere", "type": "Pooling"}]))
    with pytest.raises(BadInput, match="plain relative path"):
        plan(replace(headers(), folder=tmp_path))


@pytest.mark.parametrize(("architecture", "why"), LEFT_OUT.items())
def test_what_is_left_out_says_why(architecture: str, why: str) -> None:
    """``check`` says what a plan says, before work; the page of families says it too."""
    assert architecture not in KNOWN
    with pytest.raises(Unsupported) as refusal:
        plan(headers({"architectures": [architecture]}))
    assert f"architecture {architecture} is not made into GGUF: {why}; take" in str(refusal.value)
    page = (
        (Path(__file__).parents[4] / "docs" / "gguf-families.md")
        .read_text(encoding="utf-8")
        .split("Left out")
    )
    assert architecture.removesuffix("ForCausalLM").lower() in page[1].lower()
