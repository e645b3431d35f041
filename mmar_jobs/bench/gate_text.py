"""A comparison for people and for machines: Markdown, JUnit XML, JSON.

Not here: the verdict (gate.py).
"""

import json
from collections.abc import Iterable
from typing import Any, Final
from xml.etree import ElementTree as ET

from mmar_jobs.bench.difference import NUM_ITEMS, Judgement, Outcome
from mmar_jobs.bench.gate import Comparison, case_text
from mmar_jobs.bench.result import Measurement

_SUITE: Final = "benchmarks"


def headline(made: Comparison) -> str:
    """The answer in one line."""
    counts = {
        outcome: sum(one.outcome is outcome for one in made.judgements) for outcome in Outcome
    }
    said = ", ".join(f"{num} {outcome}" for outcome, num in counts.items())
    if made.worse:
        return f"Worse: {', '.join(sorted({one.figure.name for one in made.worse}))} ({said})"
    if made.problems:
        return f"Incomplete: {len(made.problems)} figures could not be compared ({said})"
    if not made.judgements:
        return f"No baseline yet ({len(made.added)} figures)"
    return f"Not worse ({said})"


def to_markdown(made: Comparison) -> str:
    """A table of all figures, worst first, with what could not be compared below it."""
    lines = [f"### {headline(made)}", ""]
    if made.judgements:
        confidence = f"{100 * (1 - made.rule.alpha / len(made.judgements)):.4g} %"
        lines += [
            f"| figure | case | baseline | new | change | {confidence} interval "
            "| would have shown | outcome |",
            "|---|---|---|---|---|---|---|---|",
            *(_markdown_row(one) for one in _worst_first(made.judgements)),
            "",
        ]
    notes = [
        *(f"Not compared: {problem}" for problem in made.problems),
        *(
            f"New, without a baseline: {one.name} {_value(one)} ({case_text(one)})"
            for one in made.added
        ),
        *sorted({f"{one.figure.name}: {one.note}" for one in made.judgements if one.note}),
        *_environment_notes(made),
    ]
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


def _environment_notes(made: Comparison) -> Iterable[str]:
    if not made.judgements:
        return
    first = made.judgements[0]
    device = first.figure.environment.device
    commits = [one.environment.commit[:12] for one in (first.baseline, first.figure)]
    yield f"Measured on {device}; commit {commits[0]} against {commits[1]}"
    changed = {
        change
        for one in made.judgements
        for change in one.figure.environment.changes_from(one.baseline.environment)
    }
    if changed:
        yield f"Changed with it: {', '.join(sorted(changed))}"


def _markdown_row(one: Judgement) -> str:
    mark = "**" if one.outcome is Outcome.WORSE else ""
    cells = [
        one.figure.name,
        case_text(one.figure),
        _value(one.baseline),
        _value(one.figure),
        _change(one, one.change),
        f"{_change(one, one.low)} to {_change(one, one.high)}",
        "nothing" if one.detectable is None else _change(one, one.detectable).lstrip("+"),
        f"{mark}{one.outcome}{mark}",
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _worst_first(judgements: Iterable[Judgement]) -> list[Judgement]:
    order = (Outcome.WORSE, Outcome.SAME, Outcome.BETTER)
    return sorted(judgements, key=lambda one: order.index(one.outcome))


def _is_share(one: Measurement) -> bool:
    return NUM_ITEMS in one.detail


def _value(one: Measurement) -> str:
    if _is_share(one):
        return f"{one.value:.1%}"
    return (
        f"{one.value:,.4g} {one.unit}" if abs(one.value) < 1000 else f"{one.value:,.0f} {one.unit}"
    )


def _change(one: Judgement, value: float) -> str:
    return f"{100 * value:+.1f} {'points' if _is_share(one.figure) else '%'}"


def to_junit(made: Comparison) -> str:
    """JUnit XML, one case a figure: a failure is worse, an error was not compared."""
    suite = ET.Element(
        "testsuite",
        name=_SUITE,
        tests=str(len(made.judgements) + len(made.problems)),
        failures=str(len(made.worse)),
        errors=str(len(made.problems)),
    )
    for one in made.judgements:
        name = f"{one.figure.name} ({case_text(one.figure)})"
        case = ET.SubElement(suite, "testcase", classname=_SUITE, name=name)
        text = f"{_change(one, one.change)} ({_change(one, one.low)} to {_change(one, one.high)})"
        if one.outcome is Outcome.WORSE:
            ET.SubElement(case, "failure", message=f"worse: {text}").text = one.method
        else:
            ET.SubElement(case, "system-out").text = f"{one.outcome}: {text}; {one.method}"
    for problem in made.problems:
        case = ET.SubElement(suite, "testcase", classname=_SUITE, name=problem)
        ET.SubElement(case, "error", message=problem)
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def to_json(made: Comparison) -> str:
    """Everything, for other programs."""
    row: dict[str, Any] = {
        "headline": headline(made),
        "worse": [one.figure.name for one in made.worse],
        "problems": list(made.problems),
        "added": [one.name for one in made.added],
        "figures": [
            {
                "name": one.figure.name,
                "unit": one.figure.unit,
                "case": dict(one.figure.case),
                "outcome": one.outcome,
                "baseline": one.baseline.value,
                "new": one.figure.value,
                "change": one.change,
                "low": one.low,
                "high": one.high,
                "detectable": one.detectable,
                "method": one.method,
                "note": one.note,
            }
            for one in made.judgements
        ],
    }
    return json.dumps(row, indent=1, allow_nan=False) + "\n"
