"""GPTQ with other bits for some matrices: every weight is read back as computed, by this program's reader and
by GPTQModel, to which `dynamic` says which those are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_families import verified

from quantize.errors import BadInput
from quantize.formats.packed import OWN
from quantize.formats.stored import stored_packed

pytest.importorskip("gptqmodel")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # transformers' remarks on odd little configs
    pytest.mark.usefixtures("eager"),
]


def as_gptqmodel_reads(folder: Path) -> dict[str, np.ndarray]:
    """Weights (outputs, inputs) of its packed layers, by the names of modules."""
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=BACKEND.TORCH).model
    return {
        name: module.dequantize_weight().T.float().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "qweight")
    }


def test_mixed_bits(tmp_path: Path) -> None:
    spelled = "gptq-int4:overrides=layers.0.mlp.down_proj=int8/g32;self_attn=int2/g16/asym;up_proj=skip"
    outcome = verified("llama", spelled, tmp_path)
    assert outcome.opener == OWN
    folder = tmp_path / "made"
    stored = stored_packed(folder)
    read = {linear.name: stored.format.called(linear) for linear in stored.format.linears}
    assert read["model.layers.0.mlp.down_proj"] == "gptq-int8 g32"
    assert read["model.layers.1.mlp.down_proj"] == "gptq-int4 g32"
    assert read["model.layers.1.self_attn.q_proj"] == "gptq-int2 g16"
    assert len(read) == 12
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"], config["sym"]) == (4, 32, True)
    # vLLM computes q, k and v as one matrix, and asks for the rule by its name; up_proj is left out here
    assert config["dynamic"][r"+:.*\.self_attn\.qkv_proj$"] == {"bits": 2, "group_size": 16, "sym": False}
    assert not [rule for rule in config["dynamic"] if "gate_up_proj" in rule]
    whole = dict(stored.whole())
    theirs = as_gptqmodel_reads(folder)
    assert theirs.keys() == read.keys()
    for name, values in theirs.items():  # float16 holds a scale times a code to 2^-11
        np.testing.assert_allclose(values, whole[f"{name}.weight"], rtol=2**-10, atol=1e-7, err_msg=name)


def test_mixed_bits_of_experts(tmp_path: Path) -> None:
    outcome = verified("gpt_oss", "gptq-int4:overrides=experts.*down_proj=int8;q_proj=g16/asym", tmp_path)
    assert outcome.opener == OWN
    read = stored_packed(tmp_path / "made").format
    assert {read.called(linear) for linear in read.linears} == {
        "gptq-int8 g32", "gptq-int4 g16", "gptq-int4 g32",
    }  # fmt: skip
    path = tmp_path / "made" / "config.json"
    config = json.loads(path.read_text())
    config["num_local_experts"] = 1 << 16
    for shape in config["quantization_config"]["meta"]["sources"].values():
        shape[0] = 1 << 16
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput, match="values in 4 tensors, but only"):
        stored_packed(tmp_path / "made")
