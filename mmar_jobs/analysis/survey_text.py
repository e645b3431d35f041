"""What a survey says, in words with numbers and as tables and bars for a terminal.

Not here: any number (survey.py), HTML (page.py).
"""

from collections.abc import Sequence
from typing import Final

from mmar_jobs.analysis.survey import GroupErrors, Survey, worst
from mmar_jobs.analysis.text import DIMENSION_NAMES, p_text

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
        f"{DIMENSION_NAMES[row.dimension]} {row.name} ({row.error_rate:.0%} of {row.n} wrong, "
        f"{row.num_excess:.0f} more than elsewhere, {p_text(row.p_value_holm)})"
        for row in proven[:_NUM_NAMED]
    ]
    more = len(proven) - _NUM_NAMED
    return f"Measurably worst: {', '.join(shown)}" + (f" and {more} more." if more > 0 else ".")


def table(found: Survey, num_worst: int) -> list[str]:
    """Everything as lines of text."""
    lengths = found.lengths
    lines = [f"{found.name}: {headline(found)}", f"  {evidence(found)}", f"  {where(found)}", ""]
    for dimension, rows in found.dimensions.items():
        lines += [f"Wrong by {DIMENSION_NAMES[dimension]}", *_bars(rows), ""]
    lines += [f"The {num_worst} groups with most errors beyond the share elsewhere"]
    lines += [
        f"  {row.num_excess:>6.1f} {DIMENSION_NAMES[row.dimension]}: {row.name} "
        f"({row.num_wrong} of {row.n}, {p_text(row.p_value_holm)})"
        for row in worst(found, num_worst)
    ]
    lines += ["", "   num  right with  right without  sign"]
    lines += [
        f"{sign.num:>6}  {_percent(sign.accuracy_with):>10}  "
        f"{_percent(sign.accuracy_without):>13}  {sign.text}"
        for sign in found.signs
    ]
    scripts = ", ".join(f"{name} {num:,}" for name, num in found.scripts.items())
    lines += [
        "",
        f"Thinking: median {lengths.median:,} characters, 95 % up to {lengths.percentile_95:,}, "
        f"longest {lengths.longest:,}; mostly in {scripts or 'no script'}.",
    ]
    return lines


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
