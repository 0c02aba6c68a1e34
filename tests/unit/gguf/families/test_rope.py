"""The parameters of the rotary embedding are read in transformers' spellings and order of precedence."""

import math
from typing import Any

import numpy as np
import pytest

from quantize.gguf.families.config import Hyperparameters
from quantize.gguf.families.rope import LOCAL, llama3_divisors, read_rope, yarn_divisors

SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "num_hidden_layers": 6,
}
SIZES |= {"max_position_embeddings": 256}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "long_factor": [2.0] * 16, "short_factor": [1.0] * 16}
PHI = {**LONG, "original_max_position_embeddings": 32}
HALF_LONG = {**LONG, "long_factor": [2.0] * 8, "short_factor": [1.0] * 8}
#: (model type, config over SIZES)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("llama", {}),
    "theta outside": ("llama", {"rope_theta": 5e5}),
    "theta inside": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "theta inside goes first": (
        "llama",
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ),
    "old spelling": ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "both types": ("llama", {"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2.0}}),
    "scaling goes first": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7e5}},
    ),
    "empty scaling": (
        "llama",
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
    ),
    "null scaling": ("qwen2", {"rope_scaling": None, "rope_theta": 1e6}),
    "yarn": ("qwen3", {"rope_theta": 1e6, "rope_scaling": YARN}),
    "yarn, original outside": ("qwen3", {"original_max_position_embeddings": 32, "rope_scaling": YARN}),
    "yarn, original nowhere": ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    "yarn, null factor": ("llama", {"rope_scaling": {**YARN, "factor": None}}),
    "yarn, attention_factor": ("llama", {"rope_scaling": {**YARN, "attention_factor": 1.0}}),
    "yarn, mscale": ("llama", {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}}),
    "yarn, mscale alone": ("llama", {"rope_scaling": {**YARN, "mscale": 0.707}}),
    "yarn, mscale of zero": ("llama", {"rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.0}}),
    "yarn, betas": ("llama", {"rope_scaling": {**YARN, "beta_fast": 8, "beta_slow": 2}}),
    "yarn, truncate": ("llama", {"rope_scaling": {**YARN, "truncate": False}}),
    "yarn, factor below one": ("llama", {"rope_scaling": {**YARN, "factor": 1.0}}),
    "keys of others": ("llama", {"rope_scaling": {**YARN, "attn_factor": 3.0, "extrapolation_factor": 0.5}}),
    "llama3": (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}},
    ),
    "llama3, original outside": ("llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32}),
    "llama3, original nowhere": ("llama", {"rope_scaling": LLAMA3}),
    "llama3, as Llama 4": (
        "llama",
        {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0, "original_max_position_embeddings": 64}},
    ),
    "longrope": ("llama", {"rope_scaling": {**LONG, "original_max_position_embeddings": 64}}),
    "longrope, factor": (
        "llama",
        {"rope_scaling": {**LONG, "original_max_position_embeddings": 64, "factor": 8.0}},
    ),
    "longrope, attention_factor": ("llama", {"rope_scaling": {**LONG, "attention_factor": 1.5}}),
    "phi3, outside": (
        "phi3",
        {"rope_scaling": {**LONG, "type": "longrope"}, "original_max_position_embeddings": 64},
    ),
    "phi3, inside is overruled": ("phi3", {"rope_scaling": {**LONG, "original_max_position_embeddings": 64}}),
    "phi3, su": (
        "phi3",
        {"rope_scaling": {**PHI, "rope_type": "su"}, "original_max_position_embeddings": 64},
    ),
    "phi3, yarn": (
        "phi3",
        {"rope_scaling": {**PHI, "rope_type": "yarn"}, "original_max_position_embeddings": 64},
    ),
    "phi3, partial": (
        "phi3",
        {"rope_scaling": HALF_LONG, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 64},
    ),
    "partial outside": ("phi", {"partial_rotary_factor": 0.25}),
    "partial inside": (
        "phi",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}},
    ),
    "partial nowhere": ("glm", {}),
    "partial inside goes first": (
        "glm4",
        {"partial_rotary_factor": 0.25, "rope_parameters": {"partial_rotary_factor": 0.75}},
    ),
    "neox": ("gpt_neox", {"rotary_emb_base": 5000, "rotary_pct": 0.5}),
    "neox, new": (
        "gpt_neox",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000, "partial_rotary_factor": 0.5}},
    ),
    "gemma3": ("gemma3_text", {}),
    "gemma3, old": (
        "gemma3_text",
        {
            "rope_theta": 2e6,
            "rope_local_base_freq": 5e3,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
    ),
    "gemma3, new": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 7e3},
            }
        },
    ),
    "gemma3, flat": ("gemma3_text", {"rope_parameters": {"rope_type": "default", "rope_theta": 3e6}}),
    "cohere": ("cohere", {}),
    "mixtral": ("mixtral", {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGS)
def test_as_transformers(name: str) -> None:
    from importlib import import_module
    from types import SimpleNamespace

    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    from quantize.gguf.families.plan import KNOWN

    model_type, settings = CONFIGS[name]
    raw = {**SIZES, **settings}
    architecture = CLASSES[model_type]
    family = import_module(f"quantize.gguf.families.{KNOWN[architecture]}").family(
        SimpleNamespace(architecture=architecture)
    )
    h = Hyperparameters({**raw, "architectures": [architecture]}, family.defaults)
    config = CONFIG_MAPPING[model_type].from_dict(raw)
    layer = "full_attention" if model_type == "gemma3_text" else None
    theirs = config.rope_parameters[layer] if layer else config.rope_parameters
    rope = read_rope(h)
    assert (rope.kind, rope.theta) == (theirs["rope_type"], theirs["rope_theta"])
    if layer:
        assert read_rope(h, LOCAL).theta == config.rope_parameters[LOCAL]["rope_theta"]
    if family.rotated is not None:
        assert rope.partial == theirs.get("partial_rotary_factor", 1.0)
    if rope.kind in ("default", "dynamic"):
        return
    frequencies, attention = ROPE_INIT_FUNCTIONS[rope.kind](config, layer_type=layer)
    assert math.isclose(rope.attention, attention, rel_tol=1e-9)
    columns = 2 * len(frequencies)
    divisors = rope.theta ** -(np.arange(0, columns, 2) / columns) / frequencies.numpy()
    ours = {
        "linear": lambda: np.full(columns // 2, rope.factor),
        "yarn": lambda: yarn_divisors(rope, columns),
        "llama3": lambda: llama3_divisors(rope, columns),
        "longrope": lambda: np.array(rope.own["short_factor"]),
    }[rope.kind]()
    assert np.allclose(ours, divisors, rtol=1e-5)
    assert rope.original == theirs.get("original_max_position_embeddings", rope.original)
