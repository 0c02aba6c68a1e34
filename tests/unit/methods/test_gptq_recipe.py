"""What a GPTQ recipe may say, and what that is in its digest."""

from pathlib import Path

import pytest
from decoder_cases import make_decoder

from quantize.errors import BadInput
from quantize.methods.registry import parse_recipe, plan
from quantize.sources.opening import open_checkpoint


def test_what_says_nothing_new_is_spelled_as_before() -> None:
    recipe = parse_recipe("gptq-int4")
    assert set(recipe.canonical) == {"method", "bits", "group_size", "desc_act", "sym", "damp_percent"}
    assert parse_recipe("gptq-int4:engine=native") == recipe
    assert parse_recipe("gptq-int4:engine=gptqmodel").digest != recipe.digest


@pytest.mark.parametrize(
    "spelled",
    [
        "gptq-int4:engine=native,order=none,true_sequential=false",
        "gptq-int4:engine=native,on_failure=rtn",
        "gptq-int4:engine=native,refinements=0",
        "gptq-int4:engine=native,skip=down_proj",
        "gptq-int3:engine=native,skip=down_proj;layers\\.0\\.",
        "gptq-int3:lm_head=true,overrides=down_proj=int8/g32;layers.0.=skip",
    ],
)
def test_spellings_parse_back(spelled: str) -> None:
    recipe = parse_recipe(spelled)
    assert parse_recipe(recipe.short) == recipe
    assert parse_recipe({**recipe.canonical}) == recipe


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("gptq-int4:engine=gptqmodel,order=none", "order needs engine=native"),
        ("gptq-int4:engine=gptqmodel,skip=down_proj", "skip needs engine=native"),
        ("gptq-int4:engine=gptqmodel,refinements=0", "refinements needs engine=native"),
        ("gptq-int4:engine=native,refinements=9", "refinements"),
        ("gptq-int4:engine=native,desc_act=true,order=none", "contradict each other"),
        ("gptq-int4:engine=native,skip=[", "is no regular expression"),
        ("gptq-int4:engine=native,on_failure=ignore", "on_failure"),
    ],
)
def test_what_is_refused(spelled: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_recipe(spelled)


def test_skipped_matrices_stay(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_decoder("llama", tmp_path))
    every = plan(checkpoint, parse_recipe("gptq-int4:engine=native"))
    some = plan(checkpoint, parse_recipe(r"gptq-int4:engine=native,skip=down_proj;layers\.0\.self_attn\.q"))
    gone = every.expected - some.expected
    assert gone == {
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
    }
    why = {note.tensor: note.why for note in some.planned.notes}  # type: ignore[attr-defined]
    assert all("which the recipe skips" in why[name] for name in gone)
    with pytest.raises(BadInput, match="skip=down_prj fits no matrix of its decoder layers; they have names"):
        plan(checkpoint, parse_recipe("gptq-int4:engine=native,skip=down_prj"))
