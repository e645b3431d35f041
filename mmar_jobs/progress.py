"""Progress bars where a person looks on, nothing where nobody does.

Not here: logs (logs.py), which carry the same numbers for machines.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]


class Tracker(Protocol):
    """Opens one bar; the context gives the function that advances it."""

    def __call__(self, label: str, total: int) -> "_Bar": ...


class _Bar(Protocol):
    def __enter__(self) -> Advance: ...
    def __exit__(self, *args: object) -> bool | None: ...


@contextmanager
def no_bar(label: str, total: int) -> Iterator[Advance]:
    """A bar that shows nothing."""
    del label, total
    yield lambda num_done: None


def bars(console: Console) -> Tracker:
    """Bars on `console`; each stays on the screen when it is full."""

    @contextmanager
    def bar(label: str, total: int) -> Iterator[Advance]:
        columns = (
            TextColumn("[bold]{task.description:<34}"),
            BarColumn(bar_width=36),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(label, total=total)
            yield lambda num_done: progress.update(task, advance=num_done)

    return bar
