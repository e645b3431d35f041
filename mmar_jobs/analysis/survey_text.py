"""What a survey says, in words with numbers and as tables and bars for a terminal.

Not here: any number (survey.py), HTML (page.py).
"""

from collections.abc import Sequence
from typing import Final

from mmar_jobs.analysis.survey import GroupErrors, Survey, worst
from mmar_jobs.analysis.text import DIMENSION_NAMES, group_name
from mmar_jobs.columns import aligned
from mmar_jobs.report.words import p_text

_BAR: Final = 30
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_NUM_NAMED: Final = 3


def headline(found: Survey) -> str:
    """One line: how much is wrong."""
    return f"{found.num_wrong:,} of {found.num_items:,} answers are wrong"


def evidence(found: Survey) -> str:
    """The share with its interval, and the answers that could not be right."""
    low, high = found.error_rate_ci95
    return (
        f"{found.error_rate:.1%} (95 %: {low:.1%} to {high:.1%}) by the {found.matcher} matcher; "
        f"{found.num_invalid:,} answers name no single choice."
    )


def where(found: Survey) -> str:
    """One line: which groups are worst."""
    proven = [row for row in worst(found, len(found.wrong_ids) + 1) if row.is_worse]
    if not proven:
        return "No group is measurably worse than the other questions (Holm-adjusted, 5 %)."
    shown = [
        f"{group_name(row.dimension, row.name)} ({row.error_rate:.0%} of {row.n} wrong, "
        f"{row.num_excess:.0f} more than elsewhere, {p_text(row.p_value_holm)})"
        for row in proven[:_NUM_NAMED]
    ]
    more = len(proven) - _NUM_NAMED
    return f"Measurably worst: {', '.join(shown)}" + (f" and {more} more." if more > 0 else ".")


def table(found: Survey, num_worst: int, *, all_groups: bool) -> list[str]:
    """The answer, the worst groups and the signs; with bars of every group where wanted."""
    lines = [f"{found.name}: {headline(found)}", f"  {evidence(found)}", f"  {where(found)}", ""]
    if all_groups:
        for dimension, rows in found.dimensions.items():
            lines += [f"Wrong by {DIMENSION_NAMES[dimension]}", *_bars(rows), ""]
    lines += [*aligned(_worst_rows(found, num_worst)), "", *aligned(_sign_rows(found), left=(0, 4))]
    if not found.signs_seen:
        lines.append("nothing odd: no sign was seen")
    lengths = found.lengths
    scripts = ", ".join(f"{name} {num:,}" for name, num in found.scripts.items())
    return [
        *lines,
        "",
        f"Thinking: median {lengths.median:,} characters, 95 % up to {lengths.percentile_95:,}, "
        f"longest {lengths.longest:,}. Script of most letters: {scripts or 'none'}.",
        *([] if all_groups else ["Every group: --all-groups, or --html FILE with pictures."]),
    ]


def _worst_rows(found: Survey, num_worst: int) -> list[list[str]]:
    rows = [["most errors beyond the share elsewhere", "beyond", "wrong", "of", "share", "p, Holm"]]
    rows += [
        [
            f"  {group_name(row.dimension, row.name)}",
            f"{row.num_excess:.1f}",
            str(row.num_wrong),
            str(row.n),
            f"{row.error_rate:.0%}",
            f"{row.p_value_holm:.2g}{' worse' if row.is_worse else ''}",
        ]
        for row in worst(found, num_worst)
    ]
    return rows


def _sign_rows(found: Survey) -> list[list[str]]:
    rows = [["signs", "seen", "right with", "right without", ""]]
    rows += [
        [
            f"  {sign.sign.replace('_', ' ')}",
            str(sign.num),
            _percent(sign.accuracy_with),
            _percent(sign.accuracy_without),
            sign.text,
        ]
        for sign in found.signs_seen
    ]
    return rows


def bar(share: float) -> str:
    """A share of 1 as a bar of blocks."""
    eighths = round(share * _BAR * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _bars(rows: Sequence[GroupErrors]) -> list[str]:
    width = max(len(row.name) for row in rows)
    return [
        f"  {row.name:<{width}} {row.num_wrong:>6} of {row.n:>6} {row.error_rate:>6.1%} "
        f"{bar(row.error_rate)}{'  worse' if row.is_worse else ''}"
        for row in sorted(rows, key=lambda row: -row.error_rate)
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
