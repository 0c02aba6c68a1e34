"""Models that also see, by the methods that make HF folders: the text model is quantized, the rest keeps its
bytes, and the library opens the whole of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from wrapper_cases import WRAPPERS, make_wrapper

from quantize import Artifact, convert
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import StoredTensors
from quantize.errors import Unsupported
from quantize.formats.base import Format
from quantize.formats.bitsandbytes import BnbFormat
from quantize.formats.quanto import QuantoFormat
from quantize.gguf.families.multimodal import is_other
from quantize.hf.load import bitsandbytes_compute_in

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs
IDS = torch.arange(1, 33)[None]
QUICK = ("gemma3",)
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in WRAPPERS]
EACH = pytest.mark.parametrize("model_type", CASES)


def simulated(
    source: Path, artifact: Artifact, format: Format, inputs: dict[str, torch.Tensor]
) -> np.ndarray:
    """Logits of transformers' dense model of the weights that the second reader finds, in float32."""
    from safetensors.torch import save_file
    from transformers import AutoModelForImageTextToText

    checkpoint = Checkpoint.open(source)
    read = dict(format.dequantize(artifact.folder, checkpoint))
    assert read.keys() == checkpoint.tensors.keys()
    dense = artifact.folder.parent / "dense"
    dense.mkdir()
    (dense / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = {name: torch.from_numpy(values.copy()) for name, values in read.items()}
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        logits: np.ndarray = AutoModelForImageTextToText.from_pretrained(dense)(**inputs).logits.numpy()
    return logits


def unchanged(source: Path, artifact: Artifact) -> None:
    """What lies beside the text model has the source's bytes, under whichever prefix; so has what a processor
    reads."""
    there, checkpoint = StoredTensors(artifact.folder), Checkpoint.open(source)
    others = [name for name in checkpoint.tensors if is_other(name)]
    assert others
    for name in others:
        inner = name.removeprefix("model.")
        found = next(each for each in there if each.removeprefix("model.") == inner)
        assert there.info[found].dtype == checkpoint.tensors[name].dtype
        assert np.array_equal(there.raw(found), checkpoint.read(name))
    name = "preprocessor_config.json"
    assert (artifact.folder / name).read_bytes() == (source / name).read_bytes()


@EACH
def test_quanto(model_type: str, tmp_path: Path) -> None:
    """By the library's own loader, told the class that opens the whole. float32 sums in another order move
    logits of magnitude 1 by 1e-6."""
    pytest.importorskip("optimum.quanto")
    from optimum.quanto.models.transformers_models import QuantizedTransformersModel
    from transformers import AutoModelForImageTextToText

    class Whole(QuantizedTransformersModel):
        auto_class = AutoModelForImageTextToText

    source = make_wrapper(model_type, tmp_path / "source")
    artifact = convert(source, "quanto-int8", tmp_path / "artifact")
    assert artifact.verified == "full"
    unchanged(source, artifact)
    whole = Whole.from_pretrained(artifact.folder)
    assert type(whole._wrapped).__name__ == Checkpoint.open(source).architecture
    with torch.no_grad():
        served = whole(IDS).logits.numpy()
    expected = simulated(source, artifact, QuantoFormat("int8"), {"input_ids": IDS})
    assert np.abs(served - expected).max() < 1e-4 * np.abs(expected).max()


@EACH
@pytest.mark.parametrize("recipe", ["bnb-nf4", pytest.param("bnb-int8:vision=true", marks=pytest.mark.long)])
def test_bitsandbytes(model_type: str, recipe: str, tmp_path: Path) -> None:
    """By transformers' own from_pretrained; float32 sums as above. LLM.int8() rounds activations, so that
    only what is stored is compared there."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForImageTextToText

    source = make_wrapper(model_type, tmp_path / "source")
    if model_type == "llama4":
        with pytest.raises(Unsupported, match="Llama 4"):
            convert(source, recipe, tmp_path / "artifact")
        return
    artifact = convert(source, recipe, tmp_path / "artifact")
    assert artifact.verified == "full"
    model, info = AutoModelForImageTextToText.from_pretrained(
        artifact.folder, device_map={"": "cpu"}, output_loading_info=True
    )
    assert type(model).__name__ == Checkpoint.open(source).architecture
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    if recipe == "bnb-nf4":
        unchanged(source, artifact)
        bitsandbytes_compute_in(model, torch.float32)
        with torch.no_grad():
            served = model(IDS).logits.numpy()
        expected = simulated(source, artifact, BnbFormat("nf4"), {"input_ids": IDS})
        assert np.abs(served - expected).max() < 1e-4 * np.abs(expected).max()
    else:
        quantized = [name for name in BnbFormat("int8").quantized(artifact.folder) if is_other(name)]
        assert quantized
        assert not [name for name in quantized if "embed" in name]


def test_what_is_seen_goes_through_quantized_layers(tmp_path: Path) -> None:
    """With ``vision=true``, an image: transformers' own model against the dense one of the same weights,
    which are not the source's there."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForImageTextToText

    source = make_wrapper("gemma3", tmp_path / "source", image_token_index=5, mm_tokens_per_image=4)
    artifact = convert(source, "bnb-nf4:vision=true", tmp_path / "artifact")
    model = AutoModelForImageTextToText.from_pretrained(artifact.folder, device_map={"": "cpu"})
    bitsandbytes_compute_in(model, torch.float32)
    torch.manual_seed(3)
    ids = torch.tensor([[1, 5, 5, 5, 5, 9, 10]])
    image = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32), "token_type_ids": (ids == 5).long()}
    with torch.no_grad():
        served = model(**image).logits.numpy()
        plain = AutoModelForImageTextToText.from_pretrained(source)(**image).logits.numpy()
    expected = simulated(source, artifact, BnbFormat("nf4"), image)
    assert np.abs(served - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(served - plain).max() > 1e-2 * np.abs(expected).max()


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("quanto-int8", "bnb-nf4")]


@pytest.mark.parametrize("recipe", ["float16", *LONG])
def test_what_lies_beside_keeps_a_dtype_of_its_own(recipe: str, tmp_path: Path) -> None:
    """A tower in float32 beside a text model in bfloat16."""
    pytest.importorskip("optimum.quanto")
    pytest.importorskip("bitsandbytes")
    from safetensors.torch import load_file, save_file

    source = make_wrapper("gemma3", tmp_path / "source", dtype="bfloat16")
    tensors = load_file(source / "model.safetensors")
    torch.manual_seed(5)
    for name in filter(is_other, list(tensors)):
        tensors[name] = tensors[name].float() + 1e-4 * torch.randn(tensors[name].shape)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    artifact = convert(source, recipe, tmp_path / "artifact")
    assert artifact.verified == "full"
    unchanged(source, artifact)
    notes = [note for note in artifact.manifest.notes if "vision_tower" in note.tensor]
    assert [note.what.split(":")[0] for note in notes] == ["kept as F32"]
    if recipe == "float16":
        config = json.loads((artifact.folder / "config.json").read_text())
        assert config["dtype"] == "float16"
        assert {
            StoredTensors(artifact.folder).info[name].dtype for name in tensors if not is_other(name)
        } == {"F16"}
