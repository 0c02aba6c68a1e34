"""What is written beside packed weights, and said of them, whichever method chose their codes."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from quantize.artifact.artifact import Note
from quantize.checkpoint.checkpoint import Checkpoint
from quantize.checkpoint.tensors import write_config
from quantize.files import read_json
from quantize.formats.gptq_in_vllm import refused_by_vllm
from quantize.formats.packed import GPTQMODEL, OWN, PackedFormat
from quantize.hf.names import untied

#: GPTQModel opens asymmetric weights of version 1 only from a writer whose zero points do not overflow, which
#: it knows by this entry
SAFE_ZEROS = "gptqmodel:0.9.0"
READERS = {"vllm": "vLLM", "sglang": "SGLang"}


def write_configs(
    checkpoint: Checkpoint, format: PackedFormat, stage: Path, settings: dict[str, Any] | None = None
) -> None:
    """config.json and, where the format has it, quantize_config.json; ``settings``: of the method, for who
    reads the latter."""
    quantizer = [f"quantwright:{metadata.version('quantwright')}"]
    if format.storage == "gptq" and not format.symmetric:
        quantizer.append(SAFE_ZEROS)
    quantization = format.config(checkpoint, {"quantizer": quantizer})
    if format.second_config:
        quantization |= settings or {}
    config = untied(checkpoint.config) if format.untied else checkpoint.config
    write_config(stage, {**config, "quantization_config": quantization})
    if not format.second_config:
        return
    (stage / "quantize_config.json").write_text(json.dumps(quantization, indent=2) + "\n", encoding="utf-8")


def openers(format: PackedFormat, stage: Path) -> tuple[tuple[str, ...], list[Note]]:
    """(programs that open what was written, none where all do that usually do; the notes that say so)."""
    opened, notes = _openers(format, stage)
    why = refused_by_vllm(read_json(stage / "config.json").get("quantization_config"))
    others = tuple(name for name in opened or format.loads_in if name != "vllm")
    if not why or others == opened:
        return opened, notes
    return others, [*notes, Note(tensor="*", what="vLLM 0.32 does not open it", why=f"it says: {why}")]


def _openers(format: PackedFormat, stage: Path) -> tuple[tuple[str, ...], list[Note]]:
    who, others = format.opener(stage), format.experts_openers(stage)
    if not format.as_transformers_reads:
        why = "transformers' own loader knows one number of bits, group size and kind of zero point for all"
        if format.head and not format.special:
            why = "transformers' own loader looks for packed weights in decoder layers only"
        what = "only quantwright is known to open it"
        opened = format.engine_opens(stage)
        if opened:
            what = "beside quantwright GPTQModel.load opens it, with a 16-bit dtype and backend='torch'"
        return (OWN, *((GPTQMODEL,) if opened else ())), [Note(tensor="*", what=what, why=why)]
    if who == GPTQMODEL:
        why = "transformers 5 looks for all experts in one tensor, and would fill these with random numbers"
        what = "transformers' own loader cannot open it: use GPTQModel.load"
        return others, [Note(tensor="*", what=what, why=why)]
    if who == OWN:
        readers = ", ".join(("quantwright", *(READERS[name] for name in others)))
        why = "transformers has no layer for some of its packed weights; they are unpacked while it is loaded"
        what = f"{readers} read experts one by one; {format.not_opened_by} cannot open it"
        if format.storage == "compressed-tensors" and not format.symmetric:
            why = "transformers makes room for zero points that are not packed, and refuses these"
            what = f"{readers} read it; transformers cannot open it"
        elif not others:
            what = "only quantwright is known to open it"
        return (OWN, *others), [Note(tensor="*", what=what, why=why)]
    if format.beside() and GPTQMODEL in format.loads_in:
        why = "it looks for the names that transformers gives to layers, and for what reads images"
        what = "GPTQModel's own loader is not known to open it"
        return tuple(name for name in format.loads_in if name != GPTQMODEL), [
            Note(tensor="*", what=what, why=why)
        ]
    return (), []
