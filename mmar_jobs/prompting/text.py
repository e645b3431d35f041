"""What a person reads of variants, comparisons and searches, and what a program does.

Not here: any number.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mmar_jobs.columns import aligned
from mmar_jobs.prompt import BLOCKS_BY_VERSION, SYSTEM_BY_VERSION, template_hash
from mmar_jobs.prompting.compare import VariantRow
from mmar_jobs.prompting.search import Found, Rung
from mmar_jobs.report.words import gain_interval, p_text, points


def list_variants() -> str:
    """Every known variant: its hash, what it is made of, its text."""
    return "\n\n".join(
        f"{version}  {template_hash(version)[:12]}  {', '.join(BLOCKS_BY_VERSION[version])}\n{text}"
        for version, text in SYSTEM_BY_VERSION.items()
    )


def to_json(facts: Mapping[str, Any], *, rows: Sequence[VariantRow]) -> str:
    """One JSON object: `facts`, and the rows."""
    return json.dumps({**facts, "variants": [row.model_dump() for row in rows]}, indent=1)


_HEAD: Final = (
    "prompt", "accuracy (95 %)", "gain (95 %)", "won", "lost", "p", "p Holm",
    "tokens", "unparsed", "cut off",
)  # fmt: skip


def comparison_table(rows: Sequence[VariantRow]) -> str:
    """The reference and every other variant against it."""
    reference = rows[0]
    told = (
        f"{reference.num_questions} held-out questions, greedy answers; gains against "
        f"{reference.name}"
    )
    cells = [_cells(row, is_reference=row is reference) for row in rows]
    return "\n".join([told, "", *aligned([_HEAD, *cells]), "", _verdict(rows)])


def _cells(row: VariantRow, *, is_reference: bool) -> tuple[str, ...]:
    low, high = row.accuracy_ci95
    paired = (
        f"{points(row.gain)} ({gain_interval(row.gain_ci95)})",
        str(row.num_won),
        str(row.num_lost),
        f"{row.p_value:.2g}",
        f"{row.p_value_holm:.2g}",
    )
    return (
        row.name,
        f"{row.accuracy:.1%} ({low:.1%} to {high:.1%})",
        *(("",) * len(paired) if is_reference else paired),
        f"{row.mean_tokens:.1f}",
        f"{row.unparsed_share:.1%}",
        f"{row.truncated_share:.1%}",
    )


def _verdict(rows: Sequence[VariantRow]) -> str:
    better = [row.name for row in rows[1:] if row.gain > 0 and row.p_value_holm < 0.05]
    if better:
        return f"better than {rows[0].name} (Holm-adjusted p < 0.05): {', '.join(better)}"
    return f"none is measurably better than {rows[0].name}"


def search_text(found: Found) -> str:
    """The rungs, the confirmation and the answer."""
    lines = [line for number, rung in enumerate(found.rungs, 1) for line in _rung(number, rung)]
    row = found.confirmation
    if row is None:
        lines.append(f"after the last rung no variant was ahead of {found.reference}")
    else:
        lines.append(
            f"confirmation on {row.num_questions} other questions: {found.winner} "
            f"{row.num_won} won, {row.num_lost} lost, {points(row.gain)} points "
            f"({gain_interval(row.gain_ci95)}), {p_text(row.p_value)}"
        )
        if found.detectable_gain is not None:
            lines.append(f"(they show gains from {100 * found.detectable_gain:.1f} points up)")
    if not found.is_better:
        return "\n".join([*lines, "", f"nothing better than {found.reference} was found"])
    return "\n".join([*lines, "", f"{found.winner} is better:", "", found.winner_text])


def _rung(number: int, rung: Rung) -> list[str]:
    cells = [
        (
            f"  {row.name}",
            f"{row.num_won} won",
            f"{row.num_lost} lost",
            p_text(row.p_value),
            f"{row.mean_tokens:.1f} tokens",
            "kept" if row.is_kept else "",
        )
        for row in rung.rows
    ]
    return [f"rung {number}, {rung.num_questions} questions", *aligned(cells), ""]
