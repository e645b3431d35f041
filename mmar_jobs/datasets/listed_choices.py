"""Choices that a training row lists inside its question's text, and the text without them.

Not here: which rows list them (mmar.py). Labels such as "(B)" belong to the list, not to a choice,
but only where every line carries the next one: "2." may as well be an answer.
"""

import re
import string
from collections.abc import Sequence
from typing import Final, NamedTuple

from mmar_jobs.records import canonical

_HEADING: Final = re.compile(
    r"^[ \t]*(?:answer )?(?:choices|options)[ \t]*:[ \t]*$"
    r"|(?:^|[ \t]+)choose (?:the|one|an|from)\b[^\n?]*\b(?:option|answer|choice)s?\b[^\n?]*$",
    re.IGNORECASE | re.MULTILINE,
)
_SOUND: Final = re.compile(r"\s*<(?:sound|audio)>\s*")
_LABEL: Final = re.compile(r"^(?:\(([A-Za-z]|\d{1,2})\)|([A-Za-z]|\d{1,2})[.):])\s+(?=\S)")
_BULLET: Final = re.compile(r"^[-*•]\s+(?=\S)")
_LABELS: Final = (
    tuple(string.ascii_uppercase),
    tuple(string.ascii_lowercase),
    tuple(str(number) for number in range(1, 27)),
)


class Listed(NamedTuple):
    """A question's text and what it lists; `labels` has a label per choice, or is empty."""

    text: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]


def take_choices(question: str) -> Listed:
    """Split a row's question into its text and the choices below its last heading.

    A heading is a line such as "Choices:" or the words "Choose the correct option:"; without one
    the choices are the labelled lines at the end. No choices where there are neither.
    """
    text = _SOUND.sub("\n", question).strip()
    headings = list(_HEADING.finditer(text))
    if headings:
        heading = headings[-1]
        above, below = text[: heading.start()], text[heading.end() :]
        lines = [line.strip() for line in below.splitlines() if line.strip()]
    else:
        above, lines = _labelled_end(text)
    choices, labels = _bare(lines)
    return Listed(above.strip(), choices, labels)


def match_answer(answer: str, listed: Listed) -> str | None:
    """Find the choice that a row's answer means: its text, give or take its label, or its label."""
    by_form = {canonical(choice): choice for choice in listed.choices}
    by_label = dict(zip(listed.labels, listed.choices, strict=False))
    bare = answer.strip()
    unlabelled = _LABEL.sub("", bare)
    for form in (canonical(bare), canonical(unlabelled)):
        if form in by_form:
            return by_form[form]
    return by_label.get(bare.strip("(). "))


def _labelled_end(text: str) -> tuple[str, list[str]]:
    lines = text.splitlines()
    start = len(lines)
    while start and _LABEL.match(lines[start - 1].strip()):
        start -= 1
    return "\n".join(lines[:start]), [line.strip() for line in lines[start:]]


def _bare(lines: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take bullets or running labels off, where all lines have them."""
    if lines and all(_BULLET.match(line) for line in lines):
        return tuple(_BULLET.sub("", line) for line in lines), ()
    found = tuple(match[1] or match[2] for line in lines if (match := _LABEL.match(line)))
    if found and any(found == labels[: len(lines)] for labels in _LABELS):
        return tuple(_LABEL.sub("", line) for line in lines), found
    return tuple(lines), ()
