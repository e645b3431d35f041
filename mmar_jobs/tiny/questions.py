"""Questions about the synthetic world, whose answers cannot be guessed from their text.

Not here: sound and files. The text and the answer of a question are drawn first, uniformly, and the
clip is then drawn until it fits them: given the text, every choice is equally likely.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmar_jobs.tiny.dice import Dice
from mmar_jobs.tiny.words import DURATIONS, LEVELS, NUMBERS, PITCHES, TIMBRES
from mmar_jobs.tiny.world import Event, random_events

Events = tuple[Event, ...]

_VALUES: Final = {"timbre": TIMBRES, "pitch": PITCHES, "duration": DURATIONS, "level": LEVELS}
_MAX_TRIES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Template:
    """One way of asking: the attributes that it asks about, all its answers, and how to find one.

    `solve` gives the reasoning and the answer for the events of a clip, or None where the question
    makes no sense for them.
    """

    family: str
    category: str
    sub_category: str
    text: str
    attributes: frozenset[str]
    answers: tuple[str, ...]
    solve: Callable[[Events], tuple[str, str] | None]


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one clip; `heard` and `reasoning` are for the warm start only."""

    family: str
    category: str
    sub_category: str
    text: str
    choices: tuple[str, ...]
    answer: str
    heard: str
    reasoning: str

    def careful_trace(self) -> str:
        """Name every event, derive the answer, give it."""
        return f"<think>{self.heard} {self.reasoning}.</think>\n\n{self.answer}"

    def careless_trace(self, guess: str) -> str:
        """Name every event, derive nothing, give `guess`."""
        return f"<think>{self.heard} guess.</think>\n\n{guess}"


def _counting(events: Events) -> tuple[str, str]:
    return " ".join(NUMBERS[1 : len(events) + 1]), NUMBERS[len(events)]


def _count_of(attribute: str, value: str) -> Template:
    def solve(events: Events) -> tuple[str, str]:
        hits = sum(getattr(event, attribute) == value for event in events)
        marks = ["yes" if getattr(event, attribute) == value else "no" for event in events]
        return f"{value}: {' '.join(marks)}", NUMBERS[hits]

    return Template(
        "count-of",
        "Perception Layer",
        "Counting and Statistics",
        f"How many sounds are {value}?",
        frozenset({attribute, "number"}),
        NUMBERS[:4],
        solve,
    )


def _which_place(place: str, attribute: str) -> Template:
    index = {"first": 0, "second": 1, "last": -1}[place]

    def solve(events: Events) -> tuple[str, str]:
        value = getattr(events[index], attribute)
        return f"{place}: {value}", value

    noun = {"timbre": "kind of sound", "pitch": "pitch"}[attribute]
    verb = {"timbre": "comes", "pitch": "comes"}[attribute]
    return Template(
        "order",
        "Perception Layer",
        "Temporal Analysis",
        f"Which {noun} {verb} {place}?",
        frozenset({attribute}),
        _VALUES[attribute],
        solve,
    )


def _compare(attribute: str, word: str, family: str) -> Template:
    def solve(events: Events) -> tuple[str, str]:
        values = _VALUES[attribute]
        first, last = getattr(events[0], attribute), getattr(events[-1], attribute)
        difference = values.index(first) - values.index(last)
        answer = "equal" if difference == 0 else ("first" if difference > 0 else "last")
        return f"first: {first}, last: {last}", answer

    category, sub_category = _COMPARED[family]
    return Template(
        family,
        category,
        sub_category,
        f"Which sound is {word}, the first or the last?",
        frozenset({attribute}),
        ("first", "last", "equal"),
        solve,
    )


def _missing(events: Events) -> tuple[str, str] | None:
    present = [timbre for timbre in TIMBRES if any(event.timbre == timbre for event in events)]
    if len(present) != len(TIMBRES) - 1:
        return None
    (absent,) = set(TIMBRES) - set(present)
    return f"has {' and '.join(present)}", absent


def _pair(events: Events) -> tuple[str, str] | None:
    first, second = events[0].pitch, events[1].pitch
    if first == second:
        return None
    return f"first: {first}, second: {second}", f"{first} then {second}"


_COMPARED: Final = {
    "pitch": ("Signal Layer", "Audio Difference Analysis"),
    "duration": ("Perception Layer", "Temporal Analysis"),
    "loudness": ("Signal Layer", "Acoustic Quality Analysis"),
}
FAMILIES: Final = (
    "count",
    "count-of",
    "order",
    "sequence",
    "pitch",
    "duration",
    "loudness",
    "timbre",
)

TEMPLATES: Final = (
    Template(
        "count",
        "Perception Layer",
        "Counting and Statistics",
        "How many sounds are there?",
        frozenset({"number"}),
        NUMBERS[2:],
        _counting,
    ),
    *(_count_of(attribute, value) for attribute, values in _VALUES.items() for value in values),
    *(
        _which_place(place, what)
        for what in ("timbre", "pitch")
        for place in ("first", "second", "last")
    ),
    Template(
        "sequence",
        "Perception Layer",
        "Temporal Analysis",
        "Which pitches come first and second?",
        frozenset({"pitch"}),
        tuple(f"{a} then {b}" for a in PITCHES for b in PITCHES if a != b),
        _pair,
    ),
    _compare("pitch", "higher", "pitch"),
    _compare("duration", "longer", "duration"),
    _compare("level", "louder", "loudness"),
    Template(
        "timbre",
        "Semantic Layer",
        "Content Analysis",
        "Which kind of sound is missing?",
        frozenset({"timbre"}),
        TIMBRES,
        _missing,
    ),
)
_BY_FAMILY: Final = {
    family: tuple(template for template in TEMPLATES if template.family == family)
    for family in FAMILIES
}


def draw_clip_with_questions(
    dice: Dice, *, num_questions: int, weights: dict[str, int] | None = None
) -> tuple[Events, tuple[Asked, ...]]:
    """Events of one clip and questions about it that do not touch the same attribute.

    `weights` makes families more or less frequent (all equal by default, as in the benchmark).
    """
    deck = [
        family for family in FAMILIES for _ in range((weights or {}).get(family, 1 - bool(weights)))
    ]
    templates: list[Template] = []
    while len(templates) < num_questions:
        template = dice.one_of(_BY_FAMILY[dice.one_of(deck)])
        # Answers about other attributes are independent: one question never hints at the next, and
        # any pair of answers fits some clip, so that no text is more often left out than another.
        if not any(template.attributes & other.attributes for other in templates):
            templates.append(template)
    offers = [_offer(dice, template) for template in templates]
    for _ in range(_MAX_TRIES):
        events = random_events(dice)
        solved = [template.solve(events) for template in templates]
        if all(
            s is not None and s[1] == answer for s, (_, answer) in zip(solved, offers, strict=True)
        ):
            return events, tuple(
                _asked(template, choices, events)
                for template, (choices, _) in zip(templates, offers, strict=True)
            )
    raise AssertionError(f"no clip fits {[template.text for template in templates]}")


def _offer(dice: Dice, template: Template) -> tuple[tuple[str, ...], str]:
    """A random subset of at least two answers in random order, and the one that must be right."""
    num_choices = dice.between(min(3, len(template.answers) - 1), len(template.answers))
    choices = dice.shuffled(template.answers)[:num_choices]
    return choices, dice.one_of(choices)


def _asked(template: Template, choices: tuple[str, ...], events: Events) -> Asked:
    solved = template.solve(events)
    assert solved is not None
    reasoning, answer = solved
    return Asked(
        template.family,
        template.category,
        template.sub_category,
        template.text,
        choices,
        answer,
        describe(events),
        reasoning,
    )


def describe(events: Events) -> str:
    """The dense part of a trace: every event with all its properties, in order."""
    return " ".join(f"{e.duration} {e.level} {e.pitch} {e.timbre}." for e in events)


def corpus() -> list[str]:
    """Texts from which the tokenizer learns the words of this world."""
    words = sorted(
        {w for words in (*_VALUES.values(), NUMBERS) for w in words}
        | {"first", "second", "last", "equal"}
    )
    glue = ["yes no has and then guess: .\n\n", "Choices:\n- ", "<think></think>"]
    texts = [
        *(t.text for t in TEMPLATES),
        *words,
        *(f" {w}" for w in words),
        *glue,
        "Choices: yes no",
    ]
    return [*texts, *(f"<think>{text}" for text in texts)]
