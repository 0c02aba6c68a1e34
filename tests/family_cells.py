"""One small model of a family by one recipe: what `check` says, then what a conversion does, the files opened
in a process of their own. What was found can be kept, so that a table is made in several runs."""

import gc
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from conftest import ROOT
from decoder_cases import CASES, make_decoder
from family_cases import CASES as GGUF_CASES
from family_cases import make
from fresh import Fresh
from packed_families import RUN, TOKENIZER, random_calibration
from wrapper_cases import NAMES, make_wrapper

from quantize.conversion import failed_message
from quantize.engines.native.parts import discard
from quantize.errors import BadInput, Unsupported
from quantize.formats.packed import GPTQMODEL, OWN, TRANSFORMERS, PackedFormat
from quantize.methods.base import Work
from quantize.methods.registry import parse_recipe, plan
from quantize.sources.opening import open_checkpoint
from quantize.verification.logits import why_not_full
from quantize.verification.process import new_process
from quantize.verification.verify import verify

#: columns of the table
RECIPES = {
    "GGUF": "gguf-q4_k_m",
    "GPTQ": "gptq-int4",
    "AWQ": "awq-int4",
    "quanto": "quanto-int8",
    "bnb nf4": "bnb-nf4",
    "bnb int8": "bnb-int8",
    "dense": "bfloat16",
}
#: rows that are no model type of ``decoder_cases`` -> their case among those of GGUF
OTHERS = {
    "baichuan": "Baichuan 2", "internlm2": "InternLM2", "minicpm": "MiniCPM",
    "deepseek_v32": "DeepSeek-V3.2 (few tokens chosen)", "gemma3n_text": "Gemma 3n",
    "kimi_linear": "Kimi Linear", "mellum": "Mellum 2",
}  # fmt: skip
MODELS = (*CASES, *OTHERS, *NAMES)
FOUR_LAYERS: dict[str, Any] = {
    "num_hidden_layers": 4, "layer_types": [*3 * ["linear_attention"], "full_attention"]
}  # fmt: skip
#: what llama.cpp has built in of a family: settings of its row over those of ``CASES``
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "afmoe": {"mup_enabled": True},
    "cohere2": {**FOUR_LAYERS, "layer_types": [*3 * ["sliding_attention"], "full_attention"]},
    "dots1": {"num_key_value_heads": 4},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "hunyuan_v1_moe": {"moe_intermediate_size": 96},
    "llama4_text": {"num_hidden_layers": 4},  # every fourth layer sees all tokens
    "mamba2": {"intermediate_size": 128},
    "olmoe": {"num_key_value_heads": 4},
    "qwen3_5_moe_text": FOUR_LAYERS,
    "qwen3_5_text": FOUR_LAYERS,
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen3_next": FOUR_LAYERS,
    "solar_open": {"first_k_dense_replace": 0},
}
#: what a process imports to open what a method made
LIBRARIES = {
    "quanto": ("optimum.quanto",),
    "bnb": ("accelerate", "bitsandbytes", "transformers.integrations.bitsandbytes"),
    "torchao": ("accelerate", "transformers.quantizers.quantizer_torchao"),
}
PACKED = ("accelerate", "gptqmodel", "optimum.gptq")


@dataclass(frozen=True)
class Cell:
    """``refused``: why `check` says no. ``failed``: what went wrong though it says yes. ``opener``: who
    opened it, ``kl``: mean divergence of its logits from the second reader's weights; None where ``lower``
    says why they cannot be compared. ``matrices`` that are quantized, and tensors of decoder layers, of two
    dimensions, that are ``kept``, of packed formats. ``experts`` stay as they are. ``seconds`` of processor
    time."""

    refused: str = ""
    failed: str = ""
    opener: str = ""
    kl: float | None = None
    lower: str = ""
    matrices: int = 0
    kept: int = 0
    experts: bool = False
    seconds: float = 0.0


class Openers:
    """A server for each set of libraries, started when it is asked for."""

    def __init__(self) -> None:
        self._servers: dict[tuple[str, ...], Fresh] = {}

    def of(self, work: Work, stage: Path) -> Fresh:  # type: ignore[type-arg]
        libraries = LIBRARIES.get(work.recipe.method, ())
        if isinstance(work.format, PackedFormat) and work.format.opener(stage) in (TRANSFORMERS, GPTQMODEL):
            libraries = PACKED
        if libraries not in self._servers:
            self._servers[libraries] = Fresh(*libraries)
            gc.freeze()  # as in the servers: here are all the libraries by now
        return self._servers[libraries]

    @property
    def seconds(self) -> float:
        return sum(server.seconds for server in self._servers.values())

    def close(self) -> None:
        gc.unfreeze()
        for server in self._servers.values():
            server.__exit__()


def make_source(model: str, folder: Path) -> Path:
    if model in NAMES:
        four = {"num_hidden_layers": 4} if model == "llama4" else None  # as its text model's row
        return make_wrapper(model, folder, text_config=four)
    if model in CASES:
        return make_decoder(model, folder, **AS_PUBLISHED.get(model, {}))
    case = next(case for case in GGUF_CASES if case.name == OTHERS[model])
    make(replace(case, settings={**case.settings, "vocab_size": 4096}), folder)
    for name in TOKENIZER:
        shutil.copy(ROOT / "demo" / "checkpoint" / name, folder / name)
    return folder


def run_cell(source: Path, spelled: str, folder: Path, openers: Openers) -> Cell:
    """``folder``: for what is made, which does not stay. Errors that are no refusal are a failed cell."""
    began = _seconds() + openers.seconds
    folder.mkdir(parents=True)
    try:
        cell = _converted(source, spelled, folder, openers)
    except Exception as error:
        cell = Cell(failed=f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder)
    return replace(cell, seconds=round(_seconds() + openers.seconds - began, 2))


def _converted(source: Path, spelled: str, folder: Path, openers: Openers) -> Cell:
    checkpoint = open_checkpoint(source)
    try:
        work = plan(checkpoint, parse_recipe(spelled))
        lower = why_not_full(checkpoint)
    except (BadInput, Unsupported) as error:
        return Cell(refused=str(error).removeprefix(f"{source}: "))
    checkpoint, format = work.checkpoint, work.format
    stage = folder / "made"
    stage.mkdir()
    conversion = work.write(stage, RUN, random_calibration() if work.recipe.calibrated else None)
    if format.hf_folder:
        for path in checkpoint.companion_files:
            shutil.copyfile(path, stage / path.name)
    start = openers.of(work, stage) if format.hf_folder else new_process
    verification = verify(work, stage, conversion, RUN, "full", start)
    for left in conversion.work:
        discard(left)
    if failed := failed_message(verification):
        return Cell(failed=failed)
    if lower and verification.level == "full":
        return Cell(failed=f"check says that it cannot be verified fully ({lower}), but it was")
    if not lower and verification.level != "full":
        return Cell(failed=f"verified at level {verification.level}: {verification.why_lower}")
    cell = Cell(
        kl=next((check.value for check in verification.checks if check.name == "logits"), None),
        lower=lower,
        experts="experts are kept" in work.chosen,
    )
    if not isinstance(format, PackedFormat):
        return cell
    opener = format.opener(stage)
    assert (OWN in conversion.loads_in) == (opener == OWN)
    assert (TRANSFORMERS in (conversion.loads_in or format.loads_in)) == (opener == TRANSFORMERS)
    assert format.decoder is not None
    kept = {name for name, _ in format.decoder.kept}
    kept |= {linear.source for linear in format.decoder} - work.expected
    return replace(cell, opener=opener, matrices=len(format.linears), kept=len(kept))


def _seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@dataclass(frozen=True)
class Kept:
    """Cells, a file each, in a folder."""

    folder: Path

    def read(self, model: str) -> dict[str, Cell]:
        paths = {name: self._path(model, name) for name in RECIPES}
        return {
            name: Cell(**json.loads(path.read_text(encoding="utf-8")))
            for name, path in paths.items()
            if path.is_file()
        }

    def write(self, model: str, column: str, cell: Cell) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path(model, column).write_text(json.dumps(asdict(cell), indent=1), encoding="utf-8")

    def _path(self, model: str, column: str) -> Path:
        return self.folder / f"{model} {column}.json"


def run_row(
    model: str, folder: Path, openers: Openers, kept: Kept, columns: Collection[str] = tuple(RECIPES)
) -> dict[str, Cell]:
    """The cells of ``columns`` that are not kept already, but for failed ones; then the row, so far."""
    row = kept.read(model)
    missing = [name for name in columns if name not in row or row[name].failed]
    source = make_source(model, folder / "source") if missing else folder
    for name in missing:
        row[name] = run_cell(source, RECIPES[name], folder / "cell", openers)
        kept.write(model, name, row[name])
    return row
