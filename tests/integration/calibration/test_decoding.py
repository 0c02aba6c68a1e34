"""Tokens drawn by their probabilities, and decoding that gives what transformers' own does."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from quantize.calibration.decoding import BLOCK, draw, quick_decoding

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 4},
    "qwen3_next": {
        "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("ids", [3, BLOCK, 3 * BLOCK + 7])
def test_frequencies_are_probabilities(ids: int) -> None:
    """100,000 rows: to five standard deviations; what has no probability is never drawn."""
    torch.manual_seed(ids)
    logits = torch.randn(ids) * 2
    logits[ids // 2] = -1e9
    expected = torch.softmax(logits.double(), -1)
    generator = torch.Generator().manual_seed(5)
    drawn = torch.cat([draw(logits.expand(1000, ids), generator) for _ in range(100)])
    counts = torch.bincount(drawn, minlength=ids)
    assert len(counts) == ids
    assert counts[ids // 2] == 0
    assert ((counts - 1e5 * expected).abs() <= 5 * (1e5 * expected * (1 - expected)).sqrt() + 1).all()
    again = torch.Generator().manual_seed(5)
    assert torch.equal(draw(logits.expand(1000, ids), again), drawn[:1000])


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_ends_of_the_interval(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least and the greatest number that torch draws: the first and the last id that has a
    probability."""
    logits = torch.full((1, 2 * BLOCK + 9), -torch.finfo(torch.float32).max)
    logits[0, 5] = logits[0, 88] = 0
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, uniform, dtype=torch.float64))
    assert draw(logits, torch.Generator()).tolist() == [5 if uniform == 0 else 88]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_transformers_own(kind: str) -> None:
    """Over 24 tokens, past the sliding windows, in float32: to 1e-5, as sums are taken in another order."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **KINDS[kind]})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    first = torch.arange(3, 8)[:, None]

    def generated(**quick: Any) -> Any:
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=23,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        with torch.inference_mode():
            return model.generate(first, attention_mask=torch.ones_like(first), **quick)

    plain = generated()
    with quick_decoding(model, 24) as quick:
        fast = generated(**quick)
    assert torch.equal(plain.sequences, fast.sequences)
    assert len(plain.logits) == 23
    for one, other in zip(plain.logits, fast.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    after = generated()
    assert all(map(torch.equal, plain.logits, after.logits)), "nothing of it is left behind"
