"""config.json typed and bounded: what people publish passes, what cannot be is named with its value and what
was expected."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantize.checkpoint.config import check_sizes, checked, read_config, read_generation_config
from quantize.checkpoint.safetensors_header import TensorInfo
from quantize.errors import BadInput, Unsupported
from quantize.sources.opening import open_checkpoint


def test_defaults_of_every_language_model_pass() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    read = 0
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = json.loads(CONFIG_MAPPING[name]().to_json_string(use_diff=False))
        except Exception:  # classes that have no defaults, or not without another
            continue
        checked(config, name)
        read += 1
    assert read > 150


@pytest.mark.parametrize(
    "config",
    [
        {
            "hidden_size": 32.0,
            "rope_scaling": None,
            "quantization_config": None,
            "eos_token_id": [1, 2],
            "pad_token_id": -1,
        },
        {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "mscale": 1.0}},
        {"rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}},
        {"rope_scaling": {"type": "longrope", "long_factor": [1.0, 2], "short_factor": [1, 1.0]}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": None}},
        {
            "intermediate_size": [8192, 16384],
            "num_key_value_heads": [1, 2],
            "moe_topk": [8, 8],
            "num_experts": [64, 64],
        },
        {
            "sliding_window_pattern": "LLLG",
            "sliding_window": 4096,
            "layer_types": ["full_attention"],
            "torch_dtype": "bfloat16",
        },
        {
            "text_config": {"hidden_size": 64, "rope_scaling": None},
            "vision_config": {"num_heads": [2, 4], "depth": 27},
        },
        {"rope_theta": [1e4, 5e6], "tie_word_embeddings": None, "head_dim": None, "num_hidden_layers": None},
        {"attn_config": {"alibi": True}, "id2label": {"0": "a"}, "anything": [{"else": float("nan")}]},
    ],
)
def test_as_people_publish_them(config: dict[str, Any]) -> None:
    read = checked(config, "config.json")
    assert all(type(read[name]) is int for name in ("hidden_size",) if name in read)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1000000000; expected a whole number from 1 to 10,000",
        ),
        ({"num_experts": 10**9}, "num_experts is 1000000000"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"hidden_size": []}, r"hidden_size is \[\]"),
        ({"hidden_size": 32.5}, "hidden_size is 32.5"),
        ({"architectures": 5}, "architectures is 5; expected a list of texts"),
        ({"rope_scaling": "x"}, "rope_scaling is 'x'; expected an object"),
        ({"rope_scaling": {"factor": 0}}, "rope_scaling.factor is 0"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": -1}}},
            "rope_parameters.full_attention.rope_theta is -1",
        ),
        ({"rope_scaling": {"low_freq_factor": 5, "high_freq_factor": 4}}, "at least low_freq_factor"),
        ({"quantization_config": "x"}, "quantization_config is 'x'"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'; expected a token id"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"text_config": {"num_hidden_layers": -1}}, "text_config.num_hidden_layers is -1"),
        ({"vision_config": {"depth": 10**9}}, "vision_config.depth is 1000000000; expected at most 1,000"),
        (
            {"vision_config": {"encoder": {"num_hidden_layers": 1e308}}},
            "vision_config.encoder.num_hidden_layers",
        ),
        ({"model_type": "a" * 5000 + "\n", "dtype": 5}, "dtype is 5"),
    ],
)
def test_what_cannot_be(config: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says) as error:
        checked(config, "config.json")
    assert "\n" not in str(error.value)


def tensors(**shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    names = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: TensorInfo(name, shape, "F32") for name, shape in names.items()}


WEIGHTS = tensors(
    model__embed_tokens__weight=(48, 32), model__layers__0__mlp__experts__3__up_proj__weight=(8, 32),
    model__layers__2__input_layernorm__weight=(32,),
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {
                "num_hidden_layers": 3,
                "vocab_size": 48,
                "hidden_size": 32,
                "num_experts": 4,
                "num_experts_per_tok": 2,
            },
            "",
        ),
        ({"num_hidden_layers": 2}, ""),  # the last one predicts a token further on
        ({"num_hidden_layers": 4}, "num_hidden_layers is 4; expected at most 3"),
        ({"num_experts": 5}, "num_experts is 5; expected at most 4"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
        ({"vocab_size": 7}, "vocab_size is 7; expected 48, the rows of model.embed_tokens.weight"),
        ({"hidden_size": 64}, "hidden_size is 64; expected 32"),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 3},
            "num_key_value_heads is 3; expected a divisor",
        ),
        ({"text_config": {"num_hidden_layers": 4}}, "text_config.num_hidden_layers is 4"),
        ({"text_config": {"vocab_size": 40}, "vocab_size": 7}, ""),  # of which of the models?
    ],
)
def test_sizes_are_held_against_the_tensors(config: dict[str, Any], says: str) -> None:
    if says:
        with pytest.raises(BadInput, match=says):
            check_sizes(config, WEIGHTS, "config.json")
    else:
        check_sizes(config, WEIGHTS, "config.json")


def test_models_whose_layers_have_other_names_are_bounded_too() -> None:
    others = tensors(a=(2,), b=(2,))
    check_sizes({"num_hidden_layers": 2, "num_experts": 8}, others, "config.json")
    with pytest.raises(BadInput, match="at most 2"):
        check_sizes({"num_hidden_layers": 9000}, others, "config.json")


def test_generation_config(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(
        '{"eos_token_id": [1, 2], "temperature": null, "top_k": 50}'
    )
    assert read_generation_config(tmp_path)["eos_token_id"] == [1, 2]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": {"a": 1}}')
    with pytest.raises(BadInput, match="eos_token_id"):
        read_generation_config(tmp_path)


@pytest.mark.parametrize(
    "raw", ["", "[]", "{", '{"a": ' + "[" * 1000 + "]" * 1000 + "}", "\ud800", '{"a": "\\ud800"}']
)
def test_a_config_that_cannot_be_read(raw: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(raw.encode(errors="surrogatepass"))
    with pytest.raises(BadInput, match=r"config\.json"):
        read_config(tmp_path)


def test_null_is_no_quantization(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    for config in ({"quantization_config": None}, {"quantization_config": {}}, {"text_config": None}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        open_checkpoint(tmp_path, tokenizer=False)
    for config in (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"text_config": {"quantization_config": {"a": 1}}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(Unsupported, match="already quantized"):
            open_checkpoint(tmp_path, tokenizer=False)


@pytest.mark.parametrize(
    "changes", [{"initializer_range": "x"}, {"use_cache": "yes"}, {"pad_token_id": 4096}]
)
def test_what_transformers_refuses_is_one_line_at_check(
    changes: dict[str, Any], make_checkpoint: Any, tmp_path: Path
) -> None:
    import shutil

    from quantize.methods.registry import parse_recipe, plan

    shutil.copytree(make_checkpoint(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | changes))
    checkpoint = open_checkpoint(tmp_path / "model")
    recipe = parse_recipe("float16")
    with pytest.raises(
        Unsupported, match=r"transformers 5.*(initializer_range|use_cache|Padding_idx)"
    ) as error:
        plan(checkpoint, recipe)
    assert "\n" not in str(error.value)
    recipe = parse_recipe("gguf-q8_0")
    plan(checkpoint, recipe)  # which does without transformers
