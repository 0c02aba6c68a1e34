"""Other bits, groups and zero points of some matrices of a recipe."""

from pathlib import Path
from typing import Any

import pytest
from decoder_cases import make_decoder
from hypothesis import given
from hypothesis import strategies as st

from quantize.errors import BadInput, Unsupported
from quantize.methods.overrides import BITS, GROUP_SIZES, Override, read_override, spell_override
from quantize.methods.registry import parse_recipe, plan
from quantize.sources.opening import open_checkpoint


@given(
    st.sampled_from([None, *BITS]),
    st.sampled_from([None, *GROUP_SIZES]),
    st.sampled_from([None, True, False]),
)
def test_what_is_spelled_is_read_back(bits: int | None, size: int | None, symmetric: bool | None) -> None:
    override = Override("layers.[01].*=?down", bits, size, symmetric)
    if (bits, size, symmetric) != (None, None, None):
        assert read_override(spell_override(override)) == override


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("down_proj", "expected REGEX="),
        ("down_proj=", "expected REGEX="),
        ("down_proj=int5", "'int5' is unknown"),
        ("down_proj=g48", "'g48' is unknown"),
        ("down_proj=q6_k", "'q6_k' is unknown"),
        ("down_proj=int8/int4", "says bits twice"),
        ("(down=int8", "is no regular expression"),
        ("a:b=int8", "cannot hold :"),
    ],
)
def test_what_is_wrong_is_said(said: str, message: str) -> None:
    with pytest.raises(BadInput, match=r"overrides: ") as error:
        parse_recipe({"method": "gptq", "overrides": [said]})
    assert message in str(error.value)


def test_yaml_and_short_spelling_are_one_recipe() -> None:
    short = parse_recipe("gptq-int4:overrides=down_proj=int8/g32/asym;layers.0.=skip")
    several: Any = {"down_proj": {"bits": 8, "group_size": 32, "sym": False}, "layers.0.": "skip"}
    for written in (several, ["down_proj=asym/8/g32", "layers.0.=skip"]):
        recipe = parse_recipe({"method": "gptq", "bits": 4, "overrides": written})
        assert recipe == short
        assert recipe.digest == short.digest
    assert parse_recipe(short.short) == short
    assert short.digest != parse_recipe("gptq-int4").digest
    assert "overrides" not in parse_recipe("gptq-int4").canonical
    with pytest.raises(BadInput, match="overrides needs engine=native"):
        parse_recipe("gptq-int4:engine=gptqmodel,overrides=down_proj=int8")


def test_the_first_pattern_wins(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_decoder("llama", tmp_path))
    spelled = "gptq-int4:group_size=32,overrides=0.mlp.down=int8;mlp=int3/g-1;v_proj=skip;o_proj=int4"
    work: Any = plan(checkpoint, parse_recipe(spelled))
    called = {linear.name: work.format.called(linear) for linear in work.format.linears}
    assert called["model.layers.0.mlp.down_proj"] == "gptq-int8 g32"
    assert called["model.layers.1.mlp.down_proj"] == "gptq-int3 per channel"
    assert called["model.layers.1.mlp.up_proj"] == "gptq-int3 per channel"
    assert called["model.layers.1.self_attn.o_proj"] == "gptq-int4 g32"
    assert not any("v_proj" in name for name in called)
    rules = work.format.own_config()["dynamic"]
    assert rules == {
        r"-:.*\.self_attn\.v_proj$": {},
        r"+:model\.layers\.0\.mlp\.down_proj$": {"bits": 8, "group_size": 32, "sym": True},
        r"+:model\.layers\.1\.mlp\.down_proj$": {"bits": 3, "group_size": -1, "sym": True},
        r"+:.*\.mlp\.gate_proj$": {"bits": 3, "group_size": -1, "sym": True},
        r"+:.*\.mlp\.up_proj$": {"bits": 3, "group_size": -1, "sym": True},
        # gate and up as vLLM joins them; queries, keys and values differ, so that it has no name for them
        r"+:.*\.mlp\.gate_up_proj$": {"bits": 3, "group_size": -1, "sym": True},
    }


def test_what_fits_nothing_or_does_not_divide(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_decoder("llama", tmp_path))
    with pytest.raises(BadInput, match=r"overrides=experts fits no matrix .* such as model.layers.0"):
        plan(checkpoint, parse_recipe("gptq-int4:overrides=experts=int8"))
    with pytest.raises(Unsupported, match=r"96 inputs, which groups of 64 \(overrides=down\) do not divide"):
        plan(checkpoint, parse_recipe("gptq-int4:overrides=down=g64"))
    work: Any = plan(checkpoint, parse_recipe("gptq-int4:overrides=down=g32"))
    assert work.format.group_size == 64  # what auto finds for the others
