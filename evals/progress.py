"""Progress on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quantize.terminal import console


@contextmanager
def progress_bar(what: str, total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar of tokens on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True), disable=not wanted) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)
