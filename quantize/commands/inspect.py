"""``quantwright inspect``: what a model is, from its headers."""

import click

from quantize.inspection.description import Description, Share, describe
from quantize.inspection.opening import look
from quantize.terminal import console, emit_json, printable, say
from quantize.units import spell_size

FIELD = 300


@click.command()
@click.argument("model", metavar="PATH_OR_ID")
@click.option("--tensors", "all_tensors", is_flag=True, help="list every tensor too")
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def inspect(model: str, all_tensors: bool, as_json: bool) -> None:
    """Say what a checkpoint or artifact is, ours or not, and what looks wrong with it.

    PATH_OR_ID is a folder, a .gguf file, a Hub id (org/name[@revision]) or a file of a GGUF repository
    (org/name:Q4_K_M). Reads headers only: of a model on the Hub by range requests. Nothing runs.
    """
    found = describe(look(model))
    _print(found, all_tensors)
    if as_json:
        emit_json(found.document())


def _print(found: Description, all_tensors: bool) -> None:
    def line(name: str, text: str) -> None:
        say(f"{name:10} {printable(text, FIELD)}")

    line("model", found.model + (f" at {found.commit}" if found.commit else ""))
    line("is", f"{found.architecture or 'unknown'} ({found.model_type or 'no model type'})")
    settings = ", ".join(f"{key} {value}" for key, value in found.settings.items())
    line("method", found.method + (f": {settings}" if settings else ""))
    if found.verified:
        line("verified", f"{found.verified}, as its manifest says")
    weights = f"{found.weights:,} weights, " if found.weights else ""
    bits = f", {found.bits_per_weight:.3f} bits per weight" if found.bits_per_weight else ""
    line("size", f"{weights}{spell_size(found.size_bytes)}{bits}")
    tokenizer = found.tokenizer
    about = [
        tokenizer.kind,
        tokenizer.called,
        f"{tokenizer.ids:,} ids" if tokenizer.ids else "",
        tokenizer.file,
    ]
    line("tokenizer", ", ".join(filter(None, about)) or "none")
    templates = [f"{t.name}, {t.characters:,} characters, {t.sha256[:12]}" for t in found.chat_templates]
    line("template", "; ".join(templates) or "none")
    cache = f"; KV cache {found.kv.arithmetic}" if found.kv else ""
    line("context", (f"{found.context:,} tokens" if found.context else "unknown") + cache)
    line("licence", found.license or "unknown")
    line("loads in", ", ".join(found.loads_in) or "unknown")
    say("")
    _table("part", found.parts)
    say("")
    _table("type", found.types)
    if all_tensors:
        say("")
        for w in found.tensors:
            say(f"{w.name}  {w.type}  {list(w.shape)}  {spell_size(w.size_bytes)}")
    for problem in found.problems:
        say(f"{problem.level}: {problem.what}: {printable(problem.why, FIELD)}")


def _table(title: str, shares: tuple[Share, ...]) -> None:
    from rich.table import Table

    table = Table(title, "tensors", "weights", "size", "bits per weight", box=None, pad_edge=False)
    for share in shares:
        bits = f"{share.bits_per_weight:.3f}" if share.bits_per_weight else "-"
        weights = f"{share.weights:,}" if share.weights is not None else "-"
        table.add_row(share.name, str(share.tensors), weights, spell_size(share.size_bytes), bits)
    console().print(table)
