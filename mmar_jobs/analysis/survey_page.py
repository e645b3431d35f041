"""A survey of one prediction file as one HTML page.

Not here: numbers (survey.py), words (survey_text.py), pictures (plots.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from mmar_jobs.analysis import plots, survey_text
from mmar_jobs.analysis.items import Items
from mmar_jobs.analysis.outcomes import Outcomes
from mmar_jobs.analysis.page import TEMPLATES, Reply, read_reply
from mmar_jobs.analysis.signs import Sign
from mmar_jobs.analysis.sound import Sound, Sounds
from mmar_jobs.analysis.survey import Survey, worst
from mmar_jobs.analysis.text import DIMENSION_NAMES
from mmar_jobs.records import Question
from mmar_jobs.report.page import open_templates


@dataclass(frozen=True)
class Case:
    """One failed question."""

    question: Question
    sound: Sound
    reply: Reply
    signs: Sequence[Sign]


def render_survey(
    found: Survey,
    items: Items,
    file: Outcomes,
    *,
    signs_Q: Sequence[Sequence[Sign]],
    sounds: Sounds,
    limits: tuple[int, int],
) -> str:
    """The whole page; `limits` are the numbers of worst groups and of failed questions shown."""
    num_worst, max_items = limits
    wrong = sorted(np.flatnonzero(~file.right_Q).tolist(), key=lambda i: -len(signs_Q[i]))
    cases = [
        Case(question, sounds.find(question), read_reply(file, i), signs_Q[i])
        for i in wrong[:max_items]
        for question in (items.question(i),)
    ]
    return (
        open_templates(*TEMPLATES)
        .get_template("analyze.html.j2")
        .render(
            found=found,
            headline=survey_text.headline(found),
            evidence=survey_text.evidence(found),
            where=survey_text.where(found),
            worst=worst(found, num_worst),
            names=DIMENSION_NAMES,
            plots=_pictures(found),
            cases=cases,
        )
    )


def _pictures(found: Survey) -> list[tuple[str, Markup]]:
    pictures = []
    for dimension, rows in sorted(found.dimensions.items(), key=lambda item: len(item[1])):
        if len(rows) > 1:
            ranked = sorted(rows, key=lambda row: -row.error_rate)
            shares = [(row.name, row.n, row.error_rate, row.error_rate_ci95) for row in ranked]
            svg = plots.error_rates(shares, f"errors-{dimension}")
            title = f"Wrong answers by {DIMENSION_NAMES[dimension]}"
            pictures.append((title, Markup(svg)))  # noqa: S704 - matplotlib escapes its texts
    svg = plots.lengths(found.lengths)
    pictures.append(("Length of thinking", Markup(svg)))  # noqa: S704 - the same
    return pictures
