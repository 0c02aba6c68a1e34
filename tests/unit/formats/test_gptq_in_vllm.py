"""Which GPTQ folders vLLM 0.32 refuses: each was tried there (docs/methods/gptq.md)."""

import json
from typing import Any

import pytest

from quantize.cli import cli
from quantize.formats.gptq_in_vllm import refused_by_vllm

ORDERED, OTHER = "activation ordering", "Unsupported quantization config: bits="
PLAIN = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, ""),
        ({"bits": 8}, ""),
        ({"desc_act": True}, ORDERED),
        ({"desc_act": True, "group_size": -1}, ""),
        ({"bits": 3}, f"{OTHER}3, sym=True"),
        ({"sym": False}, f"{OTHER}4, sym=False"),
        ({"dynamic": {"a": {"bits": 8}, "-:b": {}}}, ""),
        ({"dynamic": {"a": {"bits": 2}}}, f"{OTHER}2"),
        ({"dynamic": {"-:a": {"bits": 2}}}, ""),
        ({"desc_act": True, "group_size": -1, "dynamic": {"a": {"group_size": 64}}}, ORDERED),
        ({"quant_method": "awq", "bits": 3}, ""),
        # whatever a file may say
        ({"bits": [1], "dynamic": 5}, f"{OTHER}[1]"),
        ({"dynamic": {"a": None, "b": 3}}, ""),
    ],
)
def test_what_it_refuses(change: dict[str, Any], word: str) -> None:
    why = refused_by_vllm({**PLAIN, **change})
    assert word in why
    assert bool(why) == bool(word)


@pytest.mark.parametrize("nothing", [None, [], "gptq", {}])
def test_what_is_no_config(nothing: Any) -> None:
    assert refused_by_vllm(nothing) == ""


def test_methods_names_it_for_what_it_opens(capsys: pytest.CaptureFixture[str]) -> None:
    assert not cli.main(["methods", "--json"], standalone_mode=False)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    opening = {each["recipe"] for each in document if "vllm" in each["loads_in"]}
    gptq = {f"gptq-int{bits}" for bits in (2, 3, 4, 8)}
    assert opening & gptq == {"gptq-int4", "gptq-int8"}
    assert "awq-int4" in opening
