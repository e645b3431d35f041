"""The command `cluster status`: one screen.

Not here: finding out (status.py).
"""

import argparse
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mmar_jobs.arguments import not_negative
from mmar_jobs.cluster.run_job_command import add_namespace, run_id
from mmar_jobs.errors import DataError, ExitCode

if TYPE_CHECKING:
    from mmar_jobs.cluster.status import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run_id", metavar="RUN", type=run_id, help="name of the run")
    parser.add_argument("--gpu-hour-price", type=not_negative, help="to show what it cost so far")
    add_namespace(parser)


def run(arguments: argparse.Namespace) -> int:
    """3 where the cluster knows nothing of the run."""
    from mmar_jobs.cluster.api import open_cluster  # noqa: PLC0415 - --help needs no client
    from mmar_jobs.cluster.status import rows_of  # noqa: PLC0415 - --help needs no client

    rows = rows_of(open_cluster(arguments.namespace), arguments.run_id)
    if not rows:
        raise DataError(f"this namespace has nothing of run {arguments.run_id}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(_table(arguments.run_id, rows))
    hours = sum(row.gpu_hours for row in rows)
    price = arguments.gpu_hour_price
    cost = "" if price is None else f", {hours * price:,.2f} at {price:g} an hour"
    console.print(f"{hours:.1f} GPU hours{cost}; servers count since their present pods began")
    return int(ExitCode.DONE)


def _table(name: str, rows: "list[Row]") -> Table:
    table = Table(title=f"run {name}", title_justify="left")
    for column in ("stage", "state", "pods", "began", "took", "GPUs", "says"):
        is_number = column in ("pods", "took", "GPUs")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=column != "says")
    for row in rows:
        began = "" if row.began is None else f"{row.began:%d %b %H:%M:%S}"
        took = "" if row.took is None else str(timedelta(seconds=int(row.took.total_seconds())))
        numbers = (str(row.num_pods), began, took, str(row.num_gpus))
        table.add_row(row.what, row.state, *numbers, row.says)
    return table
