"""Every step's numbers as TensorBoard's event files, for who watches a training while it runs.

Not here: the record of them (steps.json of the adapter).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmar_jobs.qlora.step import StepResult
from mmar_jobs.store.disk import explained

WriteScalars = Callable[[int, StepResult], None]


@contextmanager
def scalars_in(folder: Path) -> Iterator[WriteScalars]:
    """A function that writes one step's numbers, steps counted from 1.

    A training that goes on after a kill writes some steps again: the last ones count.
    """
    # Seconds, and an extra of its own.
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    with explained("write", str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        writer = SummaryWriter(str(folder))

    def write(step: int, result: StepResult) -> None:
        values = {"loss": result.loss, "grad_norm": result.grad_norm, **result.metrics}
        for name, value in values.items():
            writer.add_scalar(f"train/{name}", value, step)

    try:
        yield write
    finally:
        writer.close()
