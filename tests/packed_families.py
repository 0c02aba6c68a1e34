"""One small model of a decoder family, quantized, read back, opened and run: the checks of a conversion, in
this process. And the page on families, from what was seen."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from decoder_cases import make_decoder

from quantize.artifact.artifact import CalibrationRecord
from quantize.calibration.windows import Calibration
from quantize.formats.packed import GPTQMODEL, OWN
from quantize.methods.registry import parse_recipe, plan
from quantize.recipe import RunOptions
from quantize.runtimes.opening import open_runtime
from quantize.sources.opening import open_checkpoint
from quantize.verification.logits import WINDOW_TOKENS, compare_logits, fixed_rows
from quantize.verification.weights import check_weights

RUN = RunOptions(device="cpu", threads=1, progress=False)
ROWS, LENGTH = 8, 64
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
#: model type -> why it is not among those that are made
WITHOUT = {
    "longcat_flash": "the reader's model gives other logits than transformers' for the source already",
}


@dataclass(frozen=True)
class Outcome:
    """``opener``: who opened it; ``kl``: mean divergence of its logits from the reader's weights;
    ``matrices`` that are quantized, and tensors of decoder layers, of two dimensions, that are ``kept``."""

    opener: str
    kl: float
    matrices: int
    kept: int


def random_calibration(seed: int = 0, vocabulary: int = 4096) -> Calibration:
    ids = np.random.default_rng(seed).integers(1, vocabulary, (ROWS, LENGTH))
    record = CalibrationRecord(
        source="random", sha256="", ids_sha256="", tokens=ids.size, sequence_length=LENGTH, seed=seed
    )
    return Calibration(ids, record)


def verified(model_type: str, spelled: str, folder: Path) -> Outcome:
    """Fails as a conversion's verification would."""
    return verified_folder(make_decoder(model_type, folder / "source"), spelled, folder)


def verified_folder(source: Path, spelled: str, folder: Path) -> Outcome:
    """The same of any checkpoint; the artifact is ``folder / "made"``."""
    checkpoint = open_checkpoint(source)
    work = plan(checkpoint, parse_recipe(spelled))
    stage, spill = folder / "made", folder / "spill"
    stage.mkdir()
    spill.mkdir()
    conversion = work.write(stage, RUN, random_calibration())
    for name in TOKENIZER:  # as a conversion copies them; GPTQModel looks for them
        shutil.copy(source / name, stage / name)
    assert set(work.quantized(stage)) == work.expected
    weights = check_weights(work, stage, conversion, spill)
    assert all(check.passed for check in weights.checks), weights.checks
    assert weights.spill is not None
    with open_runtime(str(stage), RUN) as runtime:
        model = getattr(runtime, "model", None)
        assert not getattr(model, "unexpected", ())
        assert type(model).__name__ == checkpoint.architecture
        rows = fixed_rows(checkpoint, WINDOW_TOKENS)
        checks, level = compare_logits(
            work, stage, weights.spill.read, frozenset(weights.extra), runtime, rows
        )
    assert level == "full"
    assert all(check.passed for check in checks), checks
    format = work.format
    opener = format.opener(stage)  # type: ignore[attr-defined]
    assert (OWN in conversion.loads_in) == (opener == OWN)
    assert ("transformers" in (conversion.loads_in or format.loads_in)) == (opener not in (OWN, GPTQMODEL))
    kl = next(check.value for check in checks if check.name == "logits")
    assert kl is not None
    assert format.decoder is not None  # type: ignore[attr-defined]
    kept = {name for name, _ in format.decoder.kept}  # type: ignore[attr-defined]
    kept |= {linear.source for linear in format.decoder} - work.expected  # type: ignore[attr-defined]
    return Outcome(opener, kl, len(format.linears), len(kept))  # type: ignore[attr-defined]


HEAD = """# Decoders that GPTQ and AWQ take

This page is written by the long test:

    QUANTWRIGHT_PACKED_FAMILIES=docs/families.md pytest -m long tests/integration/methods/test_families.py

Of each model type that transformers builds as a causal language model, and that can be built small, a model
of random weights, norms and biases is quantized ({recipes}), read back by this program's reader, opened and
run. Every tensor read back equals what the engine computed; the mean divergence in nats of the opened model's
logits from those of the reader's weights stands in the table.

Opened by **transformers**: `from_pretrained`, with GPTQModel and optimum installed, whose kernels round
activations to bfloat16 on a CPU. By **gptqmodel**: `GPTQModel.load` alone, which `eval`, `bench` and
verification use by themselves. By **quantwright**: neither opens it, as the experts lie in one tensor of
transformers' model, and GPTQModel looks for other names, gets other logits or fails, or the model's code does
not let the layers be replaced (falcon's own class of linear layers; gpt2 and mamba, whose initialisation
reads weights); `eval` and `bench` open it with the weights unpacked, in the memory of the dense model.
vLLM and SGLang were not run. By the names that their code loads, both read experts one by one of mixtral
(whose names, w1, w2 and w3, GPTQModel does not look for), olmoe, qwen2_moe and qwen3_moe, and vLLM those of
deepseek_v2 and deepseek_v3; their code of the others was not looked at. *Kept* are the tensors of decoder
layers, of two dimensions or more, that stay as they are: what chooses experts, convolutions, matrices too
small or of odd shapes, biases of stacked experts.

| model type | matrices | kept | {columns} |
|---|---|---|{lines}|
"""


def page(seen: Mapping[tuple[str, str], Outcome], recipes: Mapping[str, str]) -> str:
    """``seen``: by model type and method; ``recipes``: of each method."""
    spelled = ", ".join(f"{name}: `{recipe}`" for name, recipe in recipes.items())
    lines = [
        HEAD.format(recipes=spelled, columns=" | ".join(recipes), lines="|".join("---" for _ in recipes))
    ]
    for model_type in sorted({model_type for model_type, _ in seen}):
        found = {name: seen[model_type, name] for name in recipes if (model_type, name) in seen}
        first = next(iter(found.values()))
        cells = [f"{found[name].opener} ({found[name].kl:.1e})" if name in found else "-" for name in recipes]
        lines.append(f"| {model_type} | {first.matrices} | {first.kept} | {' | '.join(cells)} |\n")
    lines += [f"| {name} | | | {' | '.join(why for _ in recipes)} |\n" for name, why in WITHOUT.items()]
    return "".join(lines)
