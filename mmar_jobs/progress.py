"""Progress bars where a person looks on, nothing where nobody does.

Not here: logs (logs.py), which carry the same numbers for machines.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

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
# Opens one bar, by label and total; the context gives the function that advances it.
Tracker = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def no_bar(label: str, total: int) -> Iterator[Advance]:
    """A bar that shows nothing."""
    del label, total
    yield lambda _: None


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
