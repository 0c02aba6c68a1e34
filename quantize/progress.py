"""Bars on stderr, where a person looks: not where it is a file or a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from quantize.terminal import console

#: told how much more is done
Advance = Callable[[int], None]


@contextmanager
def progress_bar(
    what: str, total: int, unit: str, wanted: bool, stderr: TextIO | None = None
) -> Iterator[Advance]:
    """One bar. ``unit``: what ``total`` counts. ``stderr``: where sys.stderr is redirected meanwhile."""
    with progress_bars(what, wanted, stderr) as begin:
        yield begin(unit, total)


@contextmanager
def progress_bars(
    what: str, wanted: bool, stderr: TextIO | None = None
) -> Iterator[Callable[[str, int], Advance]]:
    """As many bars as are begun within: ``begin(unit, total)``."""
    stream = stderr or sys.stderr
    if not wanted or not stream.isatty():
        yield lambda unit, total: lambda done: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console(stderr=True)
    screen.file = stream
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}", markup=False),
        TimeRemainingColumn(),
    )
    # sys.stderr is redirected to keep a library's words off the screen; rich would put them there.
    ours = stderr is None
    with Progress(*columns, console=screen, redirect_stdout=ours, redirect_stderr=ours) as bars:

        def begin(unit: str, total: int) -> Advance:
            task = bars.add_task(what, total=total, unit=unit)
            return lambda done: bars.advance(task, done)

        yield begin
