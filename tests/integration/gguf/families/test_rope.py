"""Every kind of rotary embedding in several families: llama.cpp's logits are transformers', on more positions
than the model was trained with, or the conversion is refused before work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_cases import make_decoder
from family_cases import CASES, TABLE, Case, llamacpp_logits, make, write_gguf_f32

from quantize.errors import Unsupported
from quantize.gguf.families.plan import plan
from quantize.sources.opening import open_checkpoint

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd parameters
TRAINED, POSITIONS = 32, 96
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# as many as there are frequencies
LONG = {
    "rope_type": "longrope",
    "long_factor": "2..",
    "short_factor": "1..",
}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": YARN,
    "yarn, factor from the contexts": {**YARN, "factor": None},
    "yarn, attention_factor": {**YARN, "attention_factor": 1.0},
    "yarn, mscale": {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn, mscale alone": {**YARN, "mscale": 0.5},
    "yarn, betas": {**YARN, "beta_fast": 4, "beta_slow": 0.5},
    "yarn, truncate": {**YARN, "truncate": False},
    "llama3": {**LLAMA3, "original_max_position_embeddings": TRAINED},
    "llama3, as Llama 4": {**LLAMA3, "high_freq_factor": 1.0, "original_max_position_embeddings": TRAINED},
    "longrope": {**LONG, "original_max_position_embeddings": TRAINED},
    "longrope, factor": {**LONG, "original_max_position_embeddings": TRAINED, "factor": 2.5},
    "longrope, attention_factor": {
        **LONG,
        "original_max_position_embeddings": TRAINED,
        "attention_factor": 1.3,
    },
    "longrope, short": {**LONG, "original_max_position_embeddings": 512},
}
KEYS = {"default", "linear", "dynamic", *(kind for kind in KINDS if kind.startswith("yarn"))} - {
    "yarn, betas",
    "yarn, truncate",
}
LONGROPE = {kind for kind in KINDS if kind.startswith("longrope")}
#: case of the families -> the kinds that its file can hold
CARRIED: dict[str, set[str]] = {
    "Llama 2": set(KINDS),
    "Granite": set(KINDS),
    "Mixtral": set(KINDS),
    "Qwen2": KEYS,
    "Qwen3": KEYS,
    "GLM-4 (0414)": KEYS,
    "GLM-4 (2024)": KEYS,
    "Cohere Command-R": KEYS,
    "Cohere Command-R7B": KEYS,
    "Phi-2": KEYS,
    "StableLM 3B": KEYS,
    "GPT-NeoX (Pythia)": KEYS,
    "SmolLM3": KEYS,
    "OLMo 2": KEYS,
    "Gemma": KEYS,
    "StarCoder2": KEYS,
    "DeepSeek-V2 (low-rank queries)": KEYS - {"linear"},
    "Gemma 3": KEYS - {"yarn, attention_factor", "yarn, mscale"},
    "Phi-3": {"default", *LONGROPE},
}
BY_NAME = {case.name: case for case in CASES}
PAIRS = [
    (family, kind)
    for family, carried in CARRIED.items()
    for kind in KINDS
    if family != "Phi-3" or kind in carried
]


def rotated(case: Case) -> int:
    """Columns of a head that are rotated."""
    if "qk_rope_head_dim" in case.settings:
        return int(case.settings["qk_rope_head_dim"])
    head = int(case.settings.get("head_dim", 16))
    return {
        "glm": head // 2,
        "glm4": head // 2,
        "phi": head // 2,
        "stablelm": head // 4,
        "gpt_neox": head // 4,
    }.get(case.model_type, head)


def with_rope(case: Case, kind: str, folder: Path) -> Path:
    make(case, folder)
    parameters = dict(KINDS[kind])
    for name, first in (("long_factor", 2.0), ("short_factor", 1.0)):
        if name in parameters:
            parameters[name] = [first + index / 4 for index in range(rotated(case) // 2)]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("original_max_position_embeddings", None)
    if "original_max_position_embeddings" in parameters and case.model_type == "phi3":
        config["original_max_position_embeddings"] = parameters["original_max_position_embeddings"]
    old = config.pop("rope_parameters")
    if case.model_type == "gemma3_text":
        config["rope_parameters"] = {**old, "full_attention": {"rope_theta": 1e6, **parameters}}
    else:
        config["rope_parameters"] = {
            **{k: v for k, v in old.items() if k in ("rope_theta", "partial_rotary_factor")},
            **parameters,
        }
    if case.model_type == "mixtral":  # whose own class does not get along with null
        config["head_dim"] = 16
    path.write_text(json.dumps(config | {"max_position_embeddings": 128}))
    return folder


def difference(folder: Path, gguf: Path, positions: int) -> float:
    from transformers import AutoModelForCausalLM

    ids = np.random.default_rng(3).integers(1, 160, (1, positions))
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    return float(np.abs(llamacpp_logits(gguf, ids) - expected).max() / expected.std())


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_carried_or_refused(family: str, kind: str, tmp_path: Path) -> None:
    case = BY_NAME[family]
    folder = with_rope(case, kind, tmp_path / "hf")
    if kind not in CARRIED[family]:
        with pytest.raises(Unsupported, match="rope scaling"):
            plan(open_checkpoint(folder, tokenizer=False))
        return
    write_gguf_f32(folder, tmp_path / "m.gguf")
    # angles grow with the position, and so does what float32 loses of them
    assert difference(folder, tmp_path / "m.gguf", POSITIONS) < max(
        case.tolerance, 2 * TABLE if case.tolerance == TABLE else 2e-4
    )


def test_an_odd_number_of_rotated_values_is_refused(tmp_path: Path) -> None:
    """transformers rotates them in pairs of which one is half filled; llama.cpp aborts."""
    source = make_decoder("mimo_v2_flash", tmp_path / "source", head_dim=16)  # a third of it
    with pytest.raises(Unsupported, match="rotates 5 of the 16 values of a head"):
        plan(open_checkpoint(source))


def test_sections_of_more_pairs_than_a_head_has_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [11, 11, 10]}
    layers = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    source = make_decoder(
        "qwen3_5_text", tmp_path / "source", rope_parameters=rope, num_hidden_layers=4, layer_types=layers
    )
    with pytest.raises(Unsupported, match="has 32 pairs, a head of 16 values has 8"):
        plan(open_checkpoint(source))
