"""Groups and shapes of what GPTQ, AWQ and rounding to nearest pack, planned from headers."""

import hashlib
import json
from pathlib import Path

import pytest
from decoder_cases import make_decoder

from quantize.errors import BadInput, Unsupported
from quantize.methods.registry import parse_recipe, plan
from quantize.sources.opening import open_checkpoint


@pytest.mark.parametrize(("inputs", "size"), [(128, 128), (256, 128), (192, 64), (96, 32), (80, -1)])
def test_automatic_groups_divide_all_inputs(inputs: int, size: int, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(
        make_decoder("llama", tmp_path, hidden_size=128, intermediate_size=inputs, head_dim=32)
    )
    work = plan(checkpoint, parse_recipe("rtn-int4"))
    assert work.format.group_size == size  # type: ignore[attr-defined]
    said = [note.what for note in work.planned.notes if note.tensor == "*"]  # type: ignore[attr-defined]
    expected = {128: [], -1: ["one scale for each output"]}.get(size, [f"groups of {size} inputs"])
    assert said == expected
    assert work.chosen.startswith(expected[0] if expected else "groups of 128 inputs")
    assert plan(checkpoint, parse_recipe("rtn-int4:group_size=-1")).chosen == ""
    if size != 128:
        with pytest.raises(Unsupported, match=f"{inputs} inputs, which groups of 128 do not divide"):
            plan(checkpoint, parse_recipe("rtn-int4:group_size=128"))


def test_what_words_do_not_hold_is_kept(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_decoder("llama", tmp_path, intermediate_size=100))
    work = plan(checkpoint, parse_recipe("rtn-int4"))
    assert len(work.expected) == 8
    assert not any("mlp" in name for name in work.expected)
    notes = {note.tensor: note.why for note in work.planned.notes}  # type: ignore[attr-defined]
    assert "has 100 outputs, and rtn-int4 packs multiples of 16" in notes["model.layers.0.mlp.up_proj.weight"]
    odd = make_decoder("llama", tmp_path / "odd", hidden_size=36, intermediate_size=100, head_dim=8)
    with pytest.raises(Unsupported, match="finds nothing to quantize"):
        plan(open_checkpoint(odd), parse_recipe("rtn-int4"))


def test_auto_keeps_the_digest_that_128_has() -> None:
    """Where 128 fits, both make the same bytes; where it does not, only auto makes any."""
    old = {
        "method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
        "damp_percent": 0.05,
    }
    text = json.dumps(old, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    for spelled in ("gptq-int4", "gptq-int4:group_size=128", "gptq-int4:group_size=auto"):
        assert parse_recipe(spelled).digest == digest
    assert parse_recipe("gptq-int4").short == "gptq-int4"
    assert parse_recipe("gptq-int4:group_size=128").short == "gptq-int4:group_size=128"
    assert parse_recipe("gptq-int4:group_size=64").digest != digest


def test_of_two_spellings_with_one_digest_both_make_the_same_bytes() -> None:
    """Of compressed-tensors: ``ct-w8a16`` has whole rows, which its digest says."""
    digests = {
        spelled: parse_recipe(spelled).digest
        for spelled in ("ct-w4a16", "ct-w4a16:group_size=128", "ct-w8a16", "ct-w8a16:group_size=128")
    }
    assert digests["ct-w4a16"] == digests["ct-w4a16:group_size=128"]
    assert len(set(digests.values())) == 3
    assert parse_recipe("ct-w8a16").short == "ct-w8a16"


def test_awq_of_other_widths_is_refused_in_words() -> None:
    with pytest.raises(BadInput, match=r"bits: 3: AWQ's fast kernels know 4 bits only .* use gptq-int3"):
        parse_recipe("awq-int4:bits=3")
