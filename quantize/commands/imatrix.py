"""``quantwright imatrix``."""

import os
from pathlib import Path

import click

from quantize.calibration.sources import parse_sources
from quantize.calibration.windows import load_calibration
from quantize.commands.options import run_options
from quantize.engines.native.importance import own_imatrix
from quantize.errors import BadInput
from quantize.files import typed_path
from quantize.gguf.importance.file import read_imatrix, write_imatrix
from quantize.hashes import sha256_file
from quantize.recipe import CalibrationOptions, RunOptions
from quantize.sources.opening import open_checkpoint
from quantize.staging import follow, keep_inputs
from quantize.terminal import emit_json, log, say


@click.command()
@click.argument("model")
@click.option(
    "--text",
    default="stdlib",
    show_default=True,
    help="text file, folder, Hub dataset (org/name[:config] or org/name:split:column), `stdlib` (built-in "
    "text), `self` (the model's own samples), or several with weights: wiki.txt*0.5,code.txt*0.25,self*0.25",
)
@click.option("--tokens", type=click.IntRange(min=128), default=32_768, show_default=True)
@click.option(
    "--chunk", type=click.IntRange(min=32), default=512, show_default=True, help="tokens per window"
)
@click.option("--seed", type=int, default=0, show_default=True, help="chooses the windows of the text")
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("imatrix.gguf"), show_default=True)
@click.option("--force", is_flag=True, help="replace the importance matrix at --out")
@run_options
def imatrix(
    model: str,
    text: str,
    tokens: int,
    chunk: int,
    seed: int,
    out: Path,
    force: bool,
    run: RunOptions,
    as_json: bool,
) -> int:
    """Compute the importance matrix of MODEL over a text, in llama.cpp's format, for `convert --imatrix`.

    The model runs in float32, or in bfloat16 where its weights are that and the processor multiplies it, a
    layer at a time. `convert --to
    gguf-q4_k_m:imatrix=auto` does the same on its own calibration text.
    """
    texts = (part.path() for part in parse_sources(text))
    _claim(out, force, [typed_path(model), *(path for path in texts if path)])
    checkpoint = open_checkpoint(model, trust_remote_code=run.trust_remote_code, scratch=run.scratch)
    calibration = load_calibration(
        checkpoint, CalibrationOptions(source=text, tokens=tokens, sequence_length=chunk, seed=seed), run
    )
    for words in (calibration.summary, *calibration.said):
        log(words)
    own = own_imatrix(checkpoint, calibration, Path(text).name, run)
    computed = own.computed
    write_imatrix(out, computed.matrix, replace=force)
    entries = computed.matrix.entries
    unreached = {
        name: int((entry.counts == 0).sum()) for name, entry in entries.items() if not entry.counts.all()
    }
    for name, count in unreached.items():
        log(
            f"note: {name}: no token reached {count} of its "
            f"{len(entries[name].counts)} experts; use a longer text"
        )
    for name in computed.missing:
        log(f"note: {name}: its input exists only in llama.cpp's graph; it is quantized without importances")
    say(f"{out}: {len(entries)} tensors over {own.windows} windows of {own.window_tokens} tokens")
    if as_json:
        emit_json(
            {
                "imatrix": str(out),
                "sha256": sha256_file(out),
                "entries": len(entries),
                "windows": own.windows,
                "window_tokens": own.window_tokens,
                "text": calibration.record.model_dump(),
                "missing": list(computed.missing),
                "experts_unreached": unreached,
            }
        )
    return 0


def _claim(out: Path, force: bool, inputs: list[Path]) -> None:
    """Errors: BadInput where ``out`` cannot be written, or lies there and is no importance matrix or
    ``force`` is not given."""
    real = follow(out)
    if real.is_dir() or (real.exists() and not force):
        raise BadInput(f"{out}: already exists; choose another -o, or pass --force to replace a file")
    if not os.access(real.parent, os.W_OK):
        raise BadInput(f"{out}: its folder does not exist or is not writable; make it, or choose another -o")
    if real.exists():
        keep_inputs(out, inputs)
        try:
            read_imatrix(real)
        except BadInput:
            raise BadInput(
                f"{out}: is not an importance matrix, the only file "
                "that --force replaces; choose another -o, or remove it"
            ) from None
