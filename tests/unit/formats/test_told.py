"""What a stranger's quantization_config says is typed before it is used."""

from pathlib import Path
from typing import Any

import pytest

from quantize.errors import BadInput
from quantize.formats.told import read_told, told_sources

FOLDER = Path("model")


def told(**fields: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "gptq", **fields}}


def test_what_loaders_write_is_read() -> None:
    said = read_told(
        FOLDER,
        told(
            bits=8, group_size=64, sym=False, desc_act=True, meta={"quantizer": ["gptqmodel:7.6.0"]},
            dynamic={"-:.*gate$": {}, "+:.*down_proj": {"bits": 4, "group_size": 32}},
        ),
    )  # fmt: skip
    assert (said.bits, said.group_size, said.sym) == (8, 64, False)
    assert said.dynamic is not None
    rule = said.dynamic["+:.*down_proj"]
    assert rule is not None
    assert (rule.bits, rule.group_size, rule.sym) == (4, 32, None)
    assert told_sources(FOLDER, told(meta={"quantizer": ["gptqmodel:7.6.0"]})) == {}
    assert told_sources(FOLDER, told(meta={"sources": {"a": [2, 3, 4]}})) == {"a": (2, 3, 4)}
    assert told_sources(FOLDER, told(meta=[1])) == {}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"bits": "four"}, "bits"),
        ({"bits": 5}, "bits"),
        ({"group_size": -7}, "group_size"),
        ({"group_size": [1]}, "group_size"),
        ({"sym": "yes"}, "sym"),
        ({"checkpoint_format": {}}, "checkpoint_format"),
        ({"dynamic": [1]}, "dynamic"),
        ({"dynamic": {"a": {"bits": 10**9}}}, "dynamic.a.bits"),
        ({"dynamic": {"a": 3}}, "dynamic.a"),
    ],
)
def test_anything_else_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=f"quantization_config.{named} is ") as error:
        read_told(FOLDER, told(**fields))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sources", [[1], {"a": 5}, {"a": []}, {"a": ["x"]}, {"a": [0, 4]}, {"a": [1 << 60]}])
def test_shapes_are_shapes(sources: Any) -> None:
    with pytest.raises(BadInput, match=r"quantization_config\.meta\.sources"):
        told_sources(FOLDER, told(meta={"sources": sources}))
