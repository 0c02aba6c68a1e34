"""``quantwright compare``: two models tensor by tensor."""

import click

from quantize.inspection.comparison import Comparison, Pair
from quantize.inspection.comparison import compare as compared
from quantize.terminal import console, emit_json, printable, say

FIELD = 300
LISTED = 8


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="tensors that differ most to list",
)
@click.option("--json", "as_json", is_flag=True, help="last line of stdout is one JSON document")
def compare(first: str, second: str, top: int, as_json: bool) -> None:
    """Say where two models differ: weights, config or metadata, tokenizer, chat templates.

    A and B are folders, GGUF files, Hub ids or files of GGUF repositories, quantized or not. Errors are
    relative to B, so give the source last. One tensor of each is in memory at a time.
    """
    found = compared(first, second, progress=True)
    _print(found, top)
    if as_json:
        emit_json(found.document())


def _print(found: Comparison, top: int) -> None:
    known = [pair.difference for pair in found.pairs if pair.difference is not None]
    same = sum(its.equal for its in known)
    total = f"{len(found.pairs):,} tensors in both, {same:,} equal"
    odd = len(found.pairs) - len(known)
    say(f"weights    {total}{f', {odd:,} of other shapes' if odd else ''}")
    for model, names in zip((found.first, found.second), found.only, strict=True):
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            line = f"only in    {model}: {', '.join(names[:LISTED])}{more}"
            say(printable(line, 2 * FIELD))
    if bad := [pair.name for pair in found.pairs if pair.difference and pair.difference.not_finite]:
        say(f"NaN or Inf in {len(bad)} tensors, first {bad[0]}; they are compared without")
    apart = [pair for pair in found.worst() if pair.difference is None or not pair.difference.equal]
    if apart and top:
        say("")
        _table(apart[:top])
        say("")
    for each in found.settings:
        say(printable(f"setting    {each.name}: {each.first} and {each.second}", FIELD))
    _print_tokenizer(found)
    for note in found.notes:
        say(f"note: {printable(note, FIELD)}")


def _table(pairs: list[Pair]) -> None:
    from rich.table import Table

    columns = ("differs most", "A", "B", "error", "cosine", "largest", "worst row")
    table = Table(*columns, box=None, pad_edge=False)
    for pair in pairs:
        its = pair.difference
        if its is None:
            table.add_row(pair.name, *pair.kinds, f"shapes {pair.shapes[0]} and {pair.shapes[1]}")
            continue
        row = f"{its.worst_row}: {its.worst_row_error:.4g}" if its.worst_row >= 0 else "-"
        table.add_row(
            pair.name, *pair.kinds, f"{its.error:.4g}", f"{its.cosine:.6f}", f"{its.largest:.4g}", row
        )
    console().print(table)


def _print_tokenizer(found: Comparison) -> None:
    its = found.tokenizer
    if its is None or its.why_not:
        say(f"tokenizer  not compared: {its.why_not if its else 'there is none'}")
        return
    if its.differ:
        say(f"tokenizer  {its.differ:,} of {its.texts:,} differ; {its.example}")
    else:
        say(f"tokenizer  the same for {its.texts:,} texts or entries")
    if its.ids[0] != its.ids[1]:
        say(f"tokenizer  {its.ids[0]} and {its.ids[1]} ids")
    say(f"templates  {'the same' if its.templates_equal else 'differ'}")
