"""What a comparison says, in words with numbers and as a table for a terminal.

Not here: any number (compare.py), HTML (page.py).
"""

from collections.abc import Sequence
from typing import Final

from mmar_jobs.analysis.compare import (
    Change,
    Comparison,
    Finding,
    GroupChange,
    Pair,
    best_first,
    worst_first,
)
from mmar_jobs.columns import aligned
from mmar_jobs.report.words import gain_interval, p_text, points

DIMENSION_NAMES: Final = {
    "modality": "modality",
    "category": "category",
    "sub_category": "sub-category",
    "num_choices": "number of choices",
    "clip_length": "clip length",
}
_NUM_NAMED: Final = 3
_NUM_GROUPS: Final = 6  # that lost most, and that won most: with them the answer fills one screen
_MAX_NAME: Final = 44
_HEAD: Final = ("change", "95 %", "won", "lost", "p", "p, Holm")


def group_name(dimension: str, name: str) -> str:
    """A group where it stands alone, as in "category Semantic Layer"."""
    return name if dimension == "num_choices" else f"{DIMENSION_NAMES[dimension]} {name}"


def headline(pair: Pair) -> str:
    """One line that answers: is it better."""
    size = f"{100 * abs(pair.gain):.1f} points"
    if pair.finding is Finding.BETTER:
        return f"Yes: {pair.name} is better than {pair.baseline}, by {size}"
    if pair.finding is Finding.WORSE:
        return f"No: {pair.name} is worse than {pair.baseline}, by {size}"
    if not pair.num_lost + pair.num_won:
        return f"No difference: {pair.name} is right exactly where {pair.baseline} is"
    return f"Not measurably: {pair.name} differs from {pair.baseline} by {points(pair.gain)} points"


def evidence(pair: Pair) -> str:
    """The numbers behind the headline, and what this many questions could have shown."""
    ends = "" if pair.gain_ci95 is None else f" (95 %: {gain_interval(pair.gain_ci95)})"
    told = (
        f"{pair.baseline_accuracy:.1%} → {pair.accuracy:.1%} of {pair.n:,} questions, "
        f"{points(pair.gain)} points{ends}; {pair.num_won} won, {pair.num_lost} lost, exact "
        f"McNemar {p_text(pair.p_value)}."
    )
    if pair.detectable_gain is None:
        return f"{told} With so few disagreements no difference could have been shown."
    return (
        f"{told} With this many disagreements, {pair.n:,} questions show a difference of "
        f"{100 * pair.detectable_gain:.1f} points or more (80 % power)."
    )


def where_worse(pair: Pair) -> str:
    """One line that answers: where did it get worse."""
    ranked = worst_first(pair)
    if not ranked:
        return "It lost in no group."
    proven = [(name, row) for name, row in ranked if row.finding is Finding.WORSE]
    if proven:
        return f"Measurably worse in {_named(proven)}."
    return (
        "Measurably worse in no group (Holm-adjusted, 5 %). The largest net losses, which may be "
        f"chance: {_named(ranked)}."
    )


def table(comparison: Comparison, *, all_groups: bool) -> list[str]:
    """The answer of each pair; with numbers by group where there is one pair, or all are wanted.

    Without `all_groups` it is one screen: the groups that changed most.
    """
    lines: list[str] = []
    if len(comparison.files) > 2:
        lines += [*aligned(_file_rows(comparison)), ""]
    for pair in comparison.pairs:
        lines += [headline(pair), f"  {evidence(pair)}", f"  {where_worse(pair)}", ""]
        if all_groups:
            lines += [*aligned(_all_rows(pair)), ""]
        elif len(comparison.pairs) == 1:
            lines += [*aligned(_extreme_rows(pair)), ""]
    if comparison.num_clips < comparison.num_questions:
        lines.append(
            f"{comparison.num_questions:,} questions share {comparison.num_clips:,} clips: "
            "intervals draw whole clips, p-values take questions as independent."
        )
    more = "" if all_groups else " Every group: --all-groups, or --html FILE with pictures."
    return [*lines, f"Right by the {comparison.matcher} matcher.{more}"]


def _named(rows: Sequence[tuple[str, GroupChange]]) -> str:
    shown = [
        f"{group_name(dimension, row.name)} ({points(row.gain)} points of {row.n}, "
        f"{p_text(row.p_value_holm)})"
        for dimension, row in rows[:_NUM_NAMED]
    ]
    more = len(rows) - _NUM_NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _file_rows(comparison: Comparison) -> list[list[str]]:
    rows = [["file", "right", "95 %", "names a choice"]]
    for file in comparison.files:
        low, high = file.accuracy_ci95
        share = f"{low:.1%} to {high:.1%}"
        rows.append([file.name, f"{file.accuracy:.1%}", share, str(file.num_named)])
    return rows


def _extreme_rows(pair: Pair) -> list[list[str]]:
    rows = [["", "n", pair.baseline, pair.name, *_HEAD], [*_cells("all", pair), ""]]
    for title, found in (("lost most", worst_first(pair)), ("won most", best_first(pair))):
        more = f", {_NUM_GROUPS} of {len(found)}" if len(found) > _NUM_GROUPS else ""
        rows.append([f"{title}{more}" if found else f"{title}: no group", *[""] * 9])
        rows += [
            _group_cells(group_name(dimension, row.name), row)
            for dimension, row in found[:_NUM_GROUPS]
        ]
    return rows


def _all_rows(pair: Pair) -> list[list[str]]:
    rows = [["", "n", pair.baseline, pair.name, *_HEAD], [*_cells("all", pair), ""]]
    for dimension, found in pair.dimensions.items():
        rows.append([DIMENSION_NAMES[dimension], *[""] * 9])
        rows += [_group_cells(row.name, row) for row in found]
    return rows


def _group_cells(name: str, row: GroupChange) -> list[str]:
    mark = f" {row.finding}" if row.finding is not Finding.NO_DIFFERENCE else ""
    return [*_cells(f"  {name}", row), f"{_p(row.p_value_holm)}{mark}"]


def _cells(name: str, row: Change) -> list[str]:
    return [
        name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…",
        str(row.n),
        f"{row.baseline_accuracy:.1%}",
        f"{row.accuracy:.1%}",
        points(row.gain),
        gain_interval(row.gain_ci95),
        str(row.num_won),
        str(row.num_lost),
        _p(row.p_value),
    ]


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.2g}"
