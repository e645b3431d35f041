"""Progress: bars where a person looks on, now and then a line in the log where nobody does.

Not here: what is counted.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

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


PROGRESS: Final = "progress"  # the log's event
_BETWEEN_LINES_S: Final = 10.0


@contextmanager
def no_bar(label: str, total: int) -> Iterator[Advance]:
    """A bar that shows nothing."""
    del label, total
    yield lambda _: None


def lines(log: Any, *, every_s: float = _BETWEEN_LINES_S) -> Tracker:
    """Lines in the log, for pods: at most one in `every_s` seconds, so none of short work.

    The first advance is in no rate: it may be what was done before a restart.
    """

    @contextmanager
    def line(label: str, total: int) -> Iterator[Advance]:
        num_done, num_said = 0, 0
        said_at: float | None = None

        def advance(num: int) -> None:
            nonlocal num_done, num_said, said_at
            num_done += num
            now = time.monotonic()
            if said_at is None:
                num_said, said_at = num_done, now
            elif now - said_at >= every_s:
                per_s = float(f"{(num_done - num_said) / max(now - said_at, 1e-9):.3g}")
                num_said, said_at = num_done, now
                log.info(PROGRESS, label=label, done=num_done, total=total, per_s=per_s)

        yield advance

    return line


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
