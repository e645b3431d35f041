"""The synthetic world's questions: they need listening."""

from collections import Counter, defaultdict

import pytest

from mmar_jobs.tiny.dice import Dice
from mmar_jobs.tiny.questions import FAMILIES, TEMPLATES, Asked, Events, draw_clip_with_questions
from mmar_jobs.tiny.world import Event

TONE = Event("tone", "low", "short", "loud")
BUZZ = Event("buzz", "high", "long", "soft")


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Events, tuple[Asked, ...]]]:
    """Three thousand clips with two questions each."""
    return [draw_clip_with_questions(Dice("q", i), num_questions=2) for i in range(3_000)]


def test_every_family_is_asked_with_two_to_six_choices(
    drawn: list[tuple[Events, tuple[Asked, ...]]],
) -> None:
    """All families and all numbers of choices from two to six occur."""
    asked = [question for _, questions in drawn for question in questions]
    assert set(FAMILIES) == {question.family for question in asked}
    assert {2, 3, 4, 5, 6} == {len(question.choices) for question in asked}
    assert all(question.answer in question.choices for question in asked)
    assert all(question.category and question.sub_category for question in asked)


def test_a_guesser_that_sees_only_text_is_at_chance(
    drawn: list[tuple[Events, tuple[Asked, ...]]],
) -> None:
    """Neither the place of a choice, nor its word, nor its word in this question helps to guess."""
    asked = [question for _, questions in drawn for question in questions]
    half = len(asked) // 2
    seen, new = asked[:half], asked[half:]
    features = {
        "place": lambda q, choice: (len(q.choices), q.choices.index(choice)),
        "word": lambda q, choice: choice,
        "word in text": lambda q, choice: (q.text, choice),
        "word among choices": lambda q, choice: (q.text, frozenset(q.choices), choice),
    }
    chance = sum(1 / len(q.choices) for q in new) / len(new)
    for name, feature in features.items():
        right: Counter[object] = Counter()
        shown: Counter[object] = Counter()
        for q in seen:
            for choice in q.choices:
                shown[feature(q, choice)] += 1
                right[feature(q, choice)] += choice == q.answer

        def score(q: Asked, choice: str, feature=feature, right=right, shown=shown) -> float:
            key = feature(q, choice)
            return (right[key] + 1) / (shown[key] + 3)

        hits = sum(max(q.choices, key=lambda c: score(q, c)) == q.answer for q in new)
        # Three standard errors on 3,000 questions.
        assert hits / len(new) < chance + 3 * (chance * (1 - chance) / len(new)) ** 0.5, name


def test_answers_are_uniform_over_the_places_of_choices(
    drawn: list[tuple[Events, tuple[Asked, ...]]],
) -> None:
    """Given the number of choices every place is right equally often."""
    places: dict[int, Counter[int]] = defaultdict(Counter)
    for _, questions in drawn:
        for question in questions:
            places[len(question.choices)][question.choices.index(question.answer)] += 1
    for num_choices, counts in places.items():
        expected = counts.total() / num_choices
        assert all(abs(n - expected) < 4.5 * expected**0.5 for n in counts.values())


def test_the_questions_of_a_clip_do_not_touch_one_attribute() -> None:
    """An answer must not follow from the other question of the same clip."""
    by_text = {template.text: template for template in TEMPLATES}
    assert len(TEMPLATES) == len(by_text)
    for index in range(200):
        _, (one, other) = draw_clip_with_questions(Dice("pair", index), num_questions=2)
        assert not by_text[one.text].attributes & by_text[other.text].attributes


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("How many sounds are there?", "three"),
        ("How many sounds are loud?", "two"),
        ("How many sounds are noise?", "none"),
        ("Which kind of sound comes second?", "buzz"),
        ("Which pitch comes last?", "low"),
        ("Which sound is higher, the first or the last?", "equal"),
        ("Which sound is longer, the first or the last?", "equal"),
        ("Which kind of sound is missing?", "noise"),
        ("Which pitches come first and second?", "low then high"),
    ],
)
def test_an_answer_follows_from_the_events(text: str, answer: str) -> None:
    """The solver of each family, on a clip that a reader can check."""
    template = next(template for template in TEMPLATES if template.text == text)
    solved = template.solve((TONE, BUZZ, TONE))
    assert solved is not None
    assert answer == solved[1]


def test_comparisons_know_both_directions() -> None:
    """First and last are told apart."""
    higher = next(t for t in TEMPLATES if t.family == "pitch")
    assert ("first: high, last: low", "first") == higher.solve((BUZZ, TONE))
    assert ("first: low, last: high", "last") == higher.solve((TONE, BUZZ))


def test_traces_name_every_event_before_they_answer() -> None:
    """The dense trace is what makes the tower learn; only the careful one reasons."""
    events, questions = draw_clip_with_questions(Dice("trace"), num_questions=1)
    careful, careless = questions[0].careful_trace(), questions[0].careless_trace("two")
    for event in events:
        assert f"{event.duration} {event.level} {event.pitch} {event.timbre}." in careful
    assert careful.endswith(f"</think>\n\n{questions[0].answer}")
    assert careless.endswith(" guess.</think>\n\ntwo")
