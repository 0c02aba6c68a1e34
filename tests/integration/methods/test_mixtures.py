"""What transformers renames, stacks or joins when it loads it, by the libraries that quantize its layers."""

from pathlib import Path

import pytest
import torch
from decoder_cases import make_decoder

from quantize import Artifact, convert
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import StoredTensors
from quantize.formats.bitsandbytes import BnbFormat
from quantize.formats.quanto import QuantoFormat
from quantize.hf.load import bitsandbytes_compute_in

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs
IDS = torch.arange(1, 33)[None]


def simulated(source: Path, artifact: Artifact, format: QuantoFormat | BnbFormat) -> torch.Tensor:
    """Logits of transformers' dense model of the weights that the second reader finds, in float32."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    checkpoint = Checkpoint.open(source)
    read = dict(format.dequantize(artifact.folder, checkpoint))
    assert read.keys() == checkpoint.tensors.keys()
    dense = artifact.folder.parent / "dense"
    dense.mkdir()
    (dense / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = {name: torch.from_numpy(values.copy()) for name, values in read.items()}
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(dense)(IDS).logits
    return logits


EACH = pytest.mark.parametrize(
    "model_type",
    [
        "mixtral",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next", "deepseek_v3", "gpt_oss")
        ),
    ],
)


@EACH
def test_quanto(model_type: str, tmp_path: Path) -> None:
    """The library's own loader opens it, with the logits of the weights that are meant. float32 sums in
    another order move logits of magnitude 1 by 1e-6."""
    pytest.importorskip("optimum.quanto")
    from optimum.quanto import QuantizedModelForCausalLM

    source = make_decoder(model_type, tmp_path / "source")
    artifact = convert(source, "quanto-int8", tmp_path / "artifact")
    assert artifact.verified == "full"
    assert [note.tensor for note in artifact.manifest.notes].count("experts") == 1
    with torch.no_grad():
        served = QuantizedModelForCausalLM.from_pretrained(artifact.folder)(IDS).logits
    expected = simulated(source, artifact, QuantoFormat("int8"))
    assert (served - expected).abs().max() < 1e-4 * expected.abs().max()


@EACH
def test_bitsandbytes(model_type: str, tmp_path: Path) -> None:
    """transformers' own from_pretrained opens it, with the logits of the weights that are meant, and finds
    the tensors that stay under the source's names. float32 sums in another order move logits of magnitude 1
    by 1e-6 (the library's kernel for CPUs multiplies in bfloat16, so it is switched off)."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    source = make_decoder(model_type, tmp_path / "source")
    artifact = convert(source, "bnb-nf4", tmp_path / "artifact")
    assert artifact.verified == "full"
    notes = [note.tensor for note in artifact.manifest.notes]
    assert notes.count("experts") == 1
    stored, checkpoint = set(StoredTensors(artifact.folder)), Checkpoint.open(source)
    assert {name for name in checkpoint.tensors if "experts." in name} <= stored
    model, info = AutoModelForCausalLM.from_pretrained(
        artifact.folder, device_map={"": "cpu"}, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    bitsandbytes_compute_in(model, torch.float32)
    with torch.no_grad():
        served = model(IDS).logits
    expected = simulated(source, artifact, BnbFormat("nf4"))
    assert (served - expected).abs().max() < 1e-4 * expected.abs().max()
