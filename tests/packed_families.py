"""One small model of a decoder family, quantized, read back, opened and run: the checks of a conversion, in
this process."""

import shutil
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
