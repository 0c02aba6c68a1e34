"""Models that other programs saved quantized, and a GGUF alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from eval_runs import RUN, by_metric

from evals import evaluate
from quantize.results import read_results


def test_a_folder_that_transformers_saved_with_bitsandbytes(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=config).save_pretrained(
        tmp_path / "theirs"
    )
    settings = {"reference": checkpoint, "text": text, "tokens": 1000, "protocol": "gptq-100", "run": RUN}
    rows = evaluate([tmp_path / "theirs"], out=tmp_path / "run", **settings)
    flying = evaluate([checkpoint], load_as="bnb-nf4", **settings)
    assert {row.metric: row.value for row in rows}["kl_mean"] == pytest.approx(
        {row.metric: row.value for row in flying}["kl_mean"], rel=1e-3
    )
    subject = next(subject for subject, _ in read_results(tmp_path / "run") if not subject.role)
    assert (subject.recipe, subject.loads_in) == ("bitsandbytes", ("transformers",))


def test_a_folder_of_compressed_tensors(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """4 bits in groups of 32, packed by the format's own library, are the weights that rounding by hand
    gives."""
    pytest.importorskip("compressed_tensors")
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from transformers import AutoModelForCausalLM

    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format="pack-quantized",
        quantization_status="frozen",
    )
    rounded, packed = (
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32) for _ in range(2)
    )
    apply_quantization_config(packed, config)
    for name, module in packed.named_modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.data.view(module.out_features, -1, 32)
            scale = groups.abs().amax(-1, keepdim=True) / 7.5
            module.weight_scale.data = scale[..., 0].to(module.weight_scale.dtype)
            by_hand = (groups / scale).round().clamp(-8, 7) * scale
            rounded.get_submodule(name).weight.data = by_hand.view(module.weight.shape)
    compressor = ModelCompressor.from_pretrained_model(packed)
    compressor.compress_model(packed)
    for model, folder in ((packed, tmp_path / "packed"), (rounded, tmp_path / "rounded")):
        model.save_pretrained(folder)
        shutil.copy(checkpoint / "tokenizer.json", folder)
    compressor.update_config(tmp_path / "packed")

    both = [tmp_path / "packed", tmp_path / "rounded"]
    rows = evaluate(
        both, reference=checkpoint, text=text, tokens=1000, protocol="gptq-100", out=tmp_path / "run", run=RUN
    )
    theirs, ours = (by_metric(rows, path, "gptq-100")["kl_mean"].value for path in both)
    assert theirs > 1e-4
    assert theirs == pytest.approx(ours, rel=1e-4)
    subjects = {subject.name: subject for subject, _ in read_results(tmp_path / "run")}
    assert subjects[str(both[0])].recipe == "compressed-tensors"


def test_a_gguf_alone_needs_no_torch(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """Importing it takes longer than a small text does in llama.cpp."""
    from quantize.conversion import convert

    artifact = convert(checkpoint, "gguf-q8_0", tmp_path / "gguf", verify="none", run=RUN)
    (file,) = artifact.folder.glob("*.gguf")
    command = [
        "eval",
        str(file),
        "--ids",
        "runtime",
        "--text",
        str(text),
        "--protocol",
        "llamacpp-64",
        "--device",
        "cpu",
    ]
    program = (
        "import sys\nfrom quantize.cli import cli\n"
        f"try:\n    cli({command!r})\n"
        "except SystemExit as end:\n    print(end.code, sorted({'torch', 'transformers', 'scipy.stats'} & "
        "set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
