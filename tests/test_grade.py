"""Tests of the answer parser and the grader, most of them as laws."""

import time
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmar_jobs.errors import DataError, GateError
from mmar_jobs.grade import (
    Parsed,
    grade,
    grade_answer,
    normal_form,
    parse,
    parse_answer,
    split_completion,
)
from mmar_jobs.records import Candidate, Finish, Grade, Question, canonical

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip()) and "think>" not in text
)
CHOICES = st.lists(TEXT, min_size=2, max_size=6, unique_by=canonical)
WORDS = st.lists(st.from_regex(r"[a-z]{3,8}", fullmatch=True), min_size=2, max_size=6, unique=True)


def question_of(choices: Sequence[str], answer: str | None) -> Question:
    """Build a question around choices."""
    return Question(id="q", audio="q.wav", text="What?", choices=tuple(choices), answer=answer)


def candidate_of(
    completion: str, finish: Finish = Finish.STOP, question_id: str = "q"
) -> Candidate:
    """Build a candidate around a completion; its stored answer is deliberately absent."""
    return Candidate(
        question_id=question_id, draw=0, completion=completion, thinking="", answer=None,
        finish=finish, num_tokens=3, logprob_sum=-1.0, audio_tokens=13, prompt_hash="p",
        model_hash="m", seed=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        ("<think>a cue</think>\n\nYes", ("a cue", "Yes")),
        ("  <think>\na cue\n</think>Yes \n", ("a cue", "Yes")),
        ("a cue\n</think>\n\nYes", ("a cue", "Yes")),
        ("<think></think>Yes", ("", "Yes")),
        ("Yes", None),
        ("<think>a cue", None),
        ("<think>a cue</think>", None),
        ("<think>a cue</think> \n", None),
        ("<think>a</think>b</think>c", None),
        ("<think>a</think>b<think>c", None),
        ("<think>a<think>b</think>c", None),
        ("Well, <think>a</think>b", None),
        ("", None),
    ],
)
def test_split_accepts_one_clear_form_only(completion: str, parts: tuple[str, str] | None) -> None:
    """A completion splits at its only closing tag or not at all."""
    assert parts == split_completion(completion)


@pytest.mark.parametrize(
    ("answer_text", "choices", "answer"),
    [
        ("Yes", ("Yes", "No"), "Yes"),
        (" yes.\n", ("Yes", "No"), "Yes"),
        ("**Yes**", ("Yes", "No"), "Yes"),
        ("`Yes`.", ("Yes", "No"), "Yes"),
        ("“Yes.”", ("Yes", "No"), "Yes"),
        ("Answer: Yes", ("Yes", "No"), "Yes"),
        ("ANSWER: Yes", ("Yes", "No"), "Yes"),
        ("The answer is **Yes**.", ("Yes", "No"), "Yes"),
        ("The correct answer is: Yes", ("Yes", "No"), "Yes"),
        ("**Final answer:** Yes", ("Yes", "No"), "Yes"),
        ("**Answer**: Yes", ("Yes", "No"), "Yes"),
        ("So, the answer is 'Yes'", ("Yes", "No"), "Yes"),
        ("The answer is\nYes", ("Yes", "No"), "Yes"),
        ("Ｙｅｓ", ("Yes", "No"), "Yes"),
        ("是。", ("是", "否"), "是"),
        ("Can’t tell", ("Can't tell", "No"), "Can't tell"),
        ("Tablets", ("Tablets.", "Printers."), "Tablets."),
        ("00:06:00", ("00:06:00", "00:10:00"), "00:06:00"),
        ("1.5", ("1.5", "15"), "1.5"),
        ("-3", ("-3", "3"), "-3"),
        ("Yes, because it rains", ("Yes, because it rains", "Yes", "No"), "Yes, because it rains"),
        ("D and A", ("D in 8", "D and A"), "D and A"),
        ("Answer: Yes", ("Answer: Yes", "Yes"), "Answer: Yes"),
        ("A", ("A", "B", "C"), "A"),
        ("Yes or No", ("Yes", "No"), None),
        ("Yes, No", ("Yes", "No"), None),
        ("Yes\nNo", ("Yes", "No"), None),
        ("Yes", ("Yes, because it rains", "No"), None),
        ("Yes, because it rains", ("Yes", "No"), None),
        ("A", ("Yes", "No"), None),
        ("(A) Yes", ("Yes", "No"), None),
        ("1", ("Yes", "No"), None),
        ("The answer is", ("Yes", "No"), None),
        ("The answer is not Yes", ("Yes", "No"), None),
        ("answer yes", ("Yes", "No"), None),
        ("The answer isolated", ("olated", "No"), None),
        ("I think the answer is Yes", ("Yes", "No"), None),
        ("**", ("Yes", "**"), "**"),
        ("*", ("Yes", "**"), None),
        ("", ("Yes", "No"), None),
        ("'yes'", ("Yes", "yes."), None),
        ("Yes", ("Yes", "yes."), "Yes"),
        ("yes.", ("Yes", "yes."), "yes."),
        ("a", (" a", "a "), None),
        ("a", ("a", "a"), "a"),
    ],
)
def test_answers_name_one_choice_or_none(
    answer_text: str, choices: tuple[str, ...], answer: str | None
) -> None:
    """Only the text of one choice, give or take its dress, names that choice."""
    assert answer == parse_answer(answer_text, choices)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    """Normalising twice changes nothing, so both sides of a match can be normalised freely."""
    assert normal_form(text) == normal_form(normal_form(text))


@given(CHOICES)
def test_a_choice_is_parsed_as_itself(choices: list[str]) -> None:
    """The verbatim text of any choice names that choice, whatever it is made of."""
    stripped = [choice.strip() for choice in choices]
    for choice in choices:
        assert choice == parse_answer(choice, choices), stripped


@given(
    CHOICES,
    st.sampled_from(("{}", "**{}**", "{}.", "`{}`", '"{}"', "Answer: {}", "The answer is {}.")),
)
def test_a_dressed_choice_is_parsed_as_itself_or_as_nothing(choices: list[str], dress: str) -> None:
    """Quotes, emphasis, full stops and lead-ins never turn one choice into another."""
    forms = [normal_form(choice) for choice in choices]
    for choice in choices:
        text = dress.format(choice)
        parsed = parse_answer(text, choices)
        if text.strip() in {other.strip() for other in choices}:
            continue
        if normal_form(text) in forms and normal_form(text) != normal_form(choice):
            continue
        assert parsed in {choice, None}
        if all(forms) and len(set(forms)) == len(forms):
            assert choice == parsed


@given(CHOICES, st.sampled_from((" or ", ", ", " and ", "\n", " ", "/", " / ", "; ")), st.data())
def test_two_choices_are_never_an_answer(
    choices: list[str], joint: str, data: st.DataObject
) -> None:
    """A text that joins two choices is no answer unless it happens to be a choice itself."""
    first, second = data.draw(st.permutations(choices))[:2]
    text = f"{first}{joint}{second}"
    forms = {normal_form(choice) for choice in choices}
    assume(normal_form(text) not in forms)
    # A lead-in such as "answer:" may itself be a choice; then the rest really is the answer.
    assume("answer" not in normal_form(text))
    assert parse_answer(text, choices) is None


@given(WORDS)
def test_all_choices_together_are_never_an_answer(words: list[str]) -> None:
    """Restating every choice earns nothing, in whatever order and form."""
    for joint in (" ", ", ", " or ", "\n- ", "\n"):
        assert parse_answer(joint.join(words), words) is None
        assert parse_answer("Answer: " + joint.join(words), words) is None


@given(WORDS, st.data())
def test_a_part_of_a_choice_is_never_an_answer(words: list[str], data: st.DataObject) -> None:
    """A prefix or a suffix names a choice only if it is one."""
    word = data.draw(st.sampled_from(words))
    cut = data.draw(st.integers(1, len(word) - 1))
    for part in (word[:cut], word[cut:]):
        assert (part if part in words else None) == parse_answer(part, words)


@given(CHOICES, TEXT, st.data())
def test_a_completion_made_from_a_choice_grades_as_that_choice(
    choices: list[str], thinking: str, data: st.DataObject
) -> None:
    """Gold in, CORRECT out; every other choice WRONG; with and without the opening tag."""
    gold = data.draw(st.sampled_from(choices))
    question = question_of(choices, gold)
    for choice in choices:
        expected = Grade.CORRECT if choice == gold else Grade.WRONG
        for opening in ("<think>", ""):
            completion = f"{opening}{thinking}</think>\n\n{choice}"
            assert expected == grade(candidate_of(completion), question)
            assert Parsed(thinking.strip(), choice) == parse(completion, Finish.STOP, choices)


@given(st.text(max_size=40), st.sampled_from(Finish))
def test_parsing_never_raises_and_only_names_choices(completion: str, finish: Finish) -> None:
    """Whatever a model emits parses to one of the choices or to none."""
    parsed = parse(completion + "</think>Yes", finish, ("Yes", "No"))
    assert parsed.answer in {"Yes", None}
    assert finish is Finish.STOP or parsed.answer is None


@pytest.mark.parametrize(
    ("completion", "finish", "expected"),
    [
        ("<think>a</think>Yes", Finish.STOP, Grade.CORRECT),
        ("<think>a</think>No", Finish.STOP, Grade.WRONG),
        ("<think>a</think>Maybe", Finish.STOP, Grade.UNPARSED),
        ("<think>a", Finish.STOP, Grade.UNPARSED),
        ("<think>a</think>Yes", Finish.LENGTH, Grade.TRUNCATED),
        ("<think>a", Finish.LENGTH, Grade.TRUNCATED),
        ("<think>a</think>Yes", Finish.ERROR, Grade.ERROR),
        ("", Finish.ERROR, Grade.ERROR),
    ],
)
def test_each_way_to_end_has_its_grade(completion: str, finish: Finish, expected: Grade) -> None:
    """Server errors and cut-off completions are never answers, even where they could parse."""
    assert expected == grade(candidate_of(completion, finish), question_of(("Yes", "No"), "Yes"))


@pytest.mark.parametrize(
    ("completion", "thinking"),
    [
        ("<think>cut off here", "cut off here"),
        ("cut off here", "cut off here"),
        ("<think>a</think>b</think>c", "a"),
        ("<think>a</think>", "a"),
    ],
)
def test_thinking_without_an_answer_is_kept(completion: str, thinking: str) -> None:
    """A completion without a clear answer still shows what the model thought."""
    assert Parsed(thinking, None) == parse(completion, Finish.STOP, ("Yes", "No"))


def test_a_question_without_gold_cannot_be_graded() -> None:
    """The benchmark's blind questions are refused instead of graded wrong."""
    with pytest.raises(DataError, match="question q has no answer to grade against"):
        grade_answer("Yes", Finish.STOP, question_of(("Yes", "No"), None))


def test_a_candidate_of_another_question_is_refused() -> None:
    """A join by position instead of id is caught at the first row that it moves."""
    with pytest.raises(GateError, match=r"draw 0 of question other .* graded as question q"):
        grade(candidate_of("x", question_id="other"), question_of(("Yes", "No"), "Yes"))


def test_grading_is_fast_enough_for_a_million_candidates() -> None:
    """Parse and grade take some microseconds a candidate, so that the filter keeps its minute."""
    thinking = "I hear a dog bark twice, then a door. " * 40
    questions = [
        question_of((f"Dog {i}", f"Cat {i}", f"Owl {i}", "None"), f"Cat {i}") for i in range(100)
    ]
    rows = [
        (candidate_of(f"<think>{thinking}</think>\n\n**Cat {i}**."), question)
        for i, question in enumerate(questions)
        for _ in range(16)
    ]
    start = time.process_time()
    grades = [grade(candidate, question) for candidate, question in rows]
    spent_s = time.process_time() - start
    assert {Grade.CORRECT} == set(grades)
    # 5 us measured on an idle core; the limit only catches an accidental factor of ten.
    assert spent_s / len(rows) < 50e-6
