"""`mmar-jobs bench judge`: hold all recorded results of a commit against the baseline.

Not here: the comparison (gate.py), moving the baseline (baseline_command.py).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmar_jobs.bench.archive import Archive
from mmar_jobs.bench.cells import Cell, commit_hash, parse_matrix
from mmar_jobs.bench.flags import add_flag, add_store_flags, open_archive
from mmar_jobs.bench.gate_command import add_rule_flags, conclude, rule_of
from mmar_jobs.errors import DataError
from mmar_jobs.output import write_output

if TYPE_CHECKING:
    from mmar_jobs.bench.difference import Rule
    from mmar_jobs.bench.gate import Comparison
    from mmar_jobs.bench.result import Measurement


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    """Which results, and what counts as a change."""
    parser.add_argument(
        "--commit", type=commit_hash, required=True, help="what was measured (required)"
    )
    parser.add_argument(
        "--cells", required=True, help='JSON: [{"bench": "NAME --flag ...", ...}, ...] (required)'
    )
    flag = add_flag(parser)
    flag("--outputs", "folder for the table, as file `table`", type=Path, shown="no")
    add_store_flags(parser)
    add_rule_flags(parser)


def judge(chosen: argparse.Namespace) -> int:
    """Exit codes as `gate`; figures without a baseline are shown and fail nothing."""
    # numpy takes a tenth of a second that --help must not pay.
    from mmar_jobs.bench.gate_text import to_markdown  # noqa: PLC0415

    cells = parse_matrix(chosen.cells)
    archive = open_archive(chosen)
    new, missing = _measured(archive, chosen.commit, cells)
    made = _compared(new, _before(archive, cells), rule_of(chosen))
    made = replace(made, problems=(*missing, *made.problems))
    table = to_markdown(made)
    sys.stdout.write(table)
    if chosen.outputs is not None:
        chosen.outputs.mkdir(parents=True, exist_ok=True)
        write_output(chosen.outputs / "table", table)
    return conclude(made, "bench")


def _compared(
    new: "Sequence[Measurement]", baseline: "Sequence[Measurement]", rule: "Rule"
) -> "Comparison":
    """A comparison also where there is nothing to compare, so that the table can say why."""
    from mmar_jobs.bench.gate import Comparison, compare_results  # noqa: PLC0415 - numpy

    if not new or not baseline:
        judged = tuple(one for one in new if one.direction != "none")
        return Comparison((), (), judged, (), rule)
    try:
        return compare_results(new, baseline, rule)
    except DataError as error:
        return Comparison((), (str(error),), (), (), rule)


def _measured(
    archive: Archive, commit: str, cells: Sequence[Cell]
) -> "tuple[list[Measurement], list[str]]":
    """The figures of all cells, and a line for each cell that has none."""
    found, missing = {}, []
    for cell in cells:
        figures = archive.find(commit, cell)
        if figures is None:
            missing.append(f"{cell} has no results: its log {commit}/{cell.key}.log says why")
        for one in figures or []:
            if one.key in found:
                raise DataError(f"{one.name} is measured by two cells, one of them {cell}")
            found[one.key] = one
    return list(found.values()), missing


def _before(archive: Archive, cells: Sequence[Cell]) -> "list[Measurement]":
    commits = archive.baseline().commits
    found = []
    for cell in cells:
        if cell.key not in commits:
            continue
        figures = archive.find(commits[cell.key], cell)
        if figures is None:
            raise DataError(f"the baseline of {cell} is gone, commit {commits[cell.key]}: move it")
        found += figures
    return found
