"""Tests of the question parser: three formats, every kind of bad row, and the real rows."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.datasets.listed_choices import Listed, match_answer, take_choices
from mmar_jobs.datasets.mmar import BadRow, parse_questions
from mmar_jobs.datasets.source_ids import source_ids
from mmar_jobs.grade import grade_answer, parse
from mmar_jobs.prompt import SYSTEM_BY_VERSION, render
from mmar_jobs.records import Finish, Grade, Question, canonical
from mmar_jobs.score import score

REAL_ROWS = Path(__file__).parents[2] / "shared" / "data" / "mmar-head.jsonl"

BENCHMARK = {
    "id": "dQw4w9WgXcQ_00-00-01_00-00-09",
    "audio_path": "./audio/dQw4w9WgXcQ_00-00-01_00-00-09.wav",
    "question": "Did it rain?",
    "choices": ["Yes", "No"],
    "answer": "No",
    "modality": "sound",
    "category": "Signal Layer",
    "sub-category": "Weather",
    "language": None,
    "source": "youtube",
    "url": "https://www.youtube.com/watch?v=dQw4w9WgXcQ",
    "timestamp": "00:00:01,00:00:09",
    "rubric": [],
}
TRAINING = {
    "id": "count_7",
    "sound": "count_7.wav",
    "audio_dir": "counting/audios",
    "duration": 9.5,
    "question": "<sound>\nHow often does the bell ring?\n\nChoices:\n- Once\n- Two times\n- Never",
    "answer": "Two times",
    "dataset": "countingqa",
}
OWN = Question(
    id="own", audio="a/b.wav", text="What?", choices=("A b", "C d"), answer="C d", dataset="tiny"
)


def parse_rows(*rows: object) -> list[Question | BadRow]:
    """Parse rows as JSON lines of the data set `here`."""
    return list(parse_questions([json.dumps(row) for row in rows], "here"))


def reasons(*rows: object) -> list[str]:
    """Parse rows of which none is a question and return why."""
    found = parse_rows(*rows)
    assert all(isinstance(row, BadRow) for row in found)
    return [row.reason for row in found if isinstance(row, BadRow)]


def test_a_benchmark_row_becomes_a_question() -> None:
    """Every field has its place, and what is not known is ignored."""
    assert [
        Question(
            id="dQw4w9WgXcQ_00-00-01_00-00-09",
            audio="audio/dQw4w9WgXcQ_00-00-01_00-00-09.wav",
            text="Did it rain?",
            choices=("Yes", "No"),
            answer="No",
            dataset="here",
            modality="sound",
            category="Signal Layer",
            sub_category="Weather",
            source_ids=("youtube:dQw4w9WgXcQ",),
        )
    ] == parse_rows(BENCHMARK)


def test_empty_choices_of_a_benchmark_row_are_left_out() -> None:
    """Four of the real 1,000 rows end with one, and a submission must answer all 1,000."""
    (question,) = parse_rows({**BENCHMARK, "choices": ["Yes", "No", "", " "]})
    assert isinstance(question, Question)
    assert ("Yes", "No") == question.choices


def test_a_training_row_becomes_a_question() -> None:
    """The choices come out of the text, the folder from its own field."""
    assert [
        Question(
            id="count_7",
            audio="counting/audios/count_7.wav",
            text="How often does the bell ring?",
            choices=("Once", "Two times", "Never"),
            answer="Two times",
            dataset="countingqa",
        )
    ] == parse_rows(TRAINING)


def test_an_own_row_becomes_the_same_question() -> None:
    """Questions survive being written and parsed; only an unnamed data set gets its name."""
    assert [OWN] == parse_rows(OWN.model_dump(mode="json"))
    unnamed = OWN.model_copy(update={"dataset": ""})
    assert [OWN.model_copy(update={"dataset": "here"})] == parse_rows(
        unnamed.model_dump(mode="json")
    )


@pytest.mark.parametrize("indent", [None, 2])
def test_one_json_array_is_a_question_file_too(indent: int | None) -> None:
    """The benchmark is also published as one array, on one line or many."""
    text = json.dumps([BENCHMARK, TRAINING, {"id": "x"}], indent=indent)
    first, second, third = parse_questions(text.splitlines(), "here")
    assert parse_rows(BENCHMARK, TRAINING) == [first, second]
    assert isinstance(third, BadRow)
    assert (3, "x") == (third.line_number, third.id)


def test_bad_lines_are_named_and_the_others_parse() -> None:
    """Broken JSON, other encodings, blank lines and byte order marks each have their line."""
    good = json.dumps(BENCHMARK).encode()
    lines = [b"\xef\xbb\xbf" + good + b"\r\n", b"\n", b"{broken\n", b"\xff\n", b"3\n", b"[1]\n"]
    parsed = list(parse_questions(lines, "here"))
    assert parse_rows(BENCHMARK) == parsed[:1]
    bad = [(row.line_number, row.reason[:20]) for row in parsed[1:] if isinstance(row, BadRow)]
    assert [
        (3, "is not JSON: Expecti"),
        (4, "is not UTF-8 text"),
        (5, "is not a JSON object"),
        (6, "is not a JSON object"),
    ] == bad


def test_a_broken_array_is_one_bad_row() -> None:
    """A cut-off array says where it breaks, once."""
    (row,) = parse_questions(["[\n", '{"id": 1},\n', "{"], "here")
    assert isinstance(row, BadRow)
    assert row.reason.startswith("is not JSON: Expecting property name")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"id": None}, "has no id"),
        ({"id": " "}, "its id is empty"),
        ({"id": True}, "its id must be text, not true"),
        ({"id": "\ud800"}, "its id is wrong: Input should be a valid string"),
        ({"id": "x" * 201}, "its id is wrong: String should have at most 200 characters"),
        ({"question": None}, "has no question"),
        ({"question": ["?"]}, 'its question must be text, not ["?"]'),
        ({"audio_path": ""}, "its audio_path is empty"),
        ({"audio_path": "/etc/x.wav"}, "its audio '/etc/x.wav' is outside the audio root"),
        ({"audio_path": "a/../../x.wav"}, "its audio 'a/../../x.wav' is outside the audio root"),
        ({"audio_path": ".."}, "its audio '..' is outside the audio root"),
        ({"choices": None}, "has no choices"),
        ({"choices": []}, "has no choices"),
        ({"choices": "Yes, No"}, "has no choices"),
        ({"choices": ["Yes"], "answer": "Yes"}, "needs 2 to 26 choices, has 1"),
        ({"choices": ["No", " "]}, "needs 2 to 26 choices, has 1"),
        ({"benchmark_item": True}, "is marked benchmark_item: an exported item of the benchmark"),
        ({"choices": ["No", "no"]}, "has duplicate choices: ['No', 'no']"),
        ({"choices": ["No", 1.5]}, "its choice must be text, not 1.5"),
        ({"answer": "Maybe"}, "its answer 'Maybe' is not among its choices"),
        ({"answer": ""}, "its answer '' is not among its choices"),
        ({"answer": "A"}, "its answer 'A' is not among its choices"),
        ({"answer": ["No"]}, 'its answer must be text, not ["No"]'),
        ({"category": {}}, "its category must be text, not {}"),
    ],
)
def test_each_bad_benchmark_row_says_why(change: dict[str, object], reason: str) -> None:
    """One clear sentence for everything that can be wrong with a row."""
    (found,) = reasons(BENCHMARK | change)
    assert found.startswith(reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "x"}, "is none of the known formats: needs audio_path"),
        ([BENCHMARK, 1], "is not a JSON object"),
        ("text", "is not a JSON object"),
        (None, "is not a JSON object"),
        ({**TRAINING, "audio_dir": None}, "has no audio_dir"),
        ({**TRAINING, "question": "How often?"}, "has no choices: its question has no lines"),
        ({**TRAINING, "question": "How often?\nChoices:\n"}, "has no choices"),
        ({**TRAINING, "question": "Choices:\n- Two times\n- B"}, "its text is wrong: String"),
        ({**TRAINING, "answer": "Ten"}, "its answer 'Ten' is not among its choices"),
        ({**OWN.model_dump(), "surprise": 1}, "its surprise is wrong: Extra inputs"),
        ({**OWN.model_dump(), "audio": "../x.wav"}, "its audio '../x.wav' is outside"),
        ({**OWN.model_dump(), "choices": ["A"]}, "needs 2 to 26 choices, has 1"),
    ],
)
def test_each_other_bad_row_says_why(row: object, reason: str) -> None:
    """Formats are told apart by their keys, and each checks its own."""
    (found,) = reasons({"id": "first"}, row)[1:]
    assert found.startswith(reason)


def test_an_id_is_used_once() -> None:
    """The second row with an id is refused and names the first."""
    first, second, third = parse_rows(BENCHMARK, TRAINING, {**TRAINING, "id": BENCHMARK["id"]})
    assert isinstance(first, Question)
    assert isinstance(second, Question)
    assert (
        BadRow(line_number=3, id=str(BENCHMARK["id"]), reason="its id is already that of line 1")
        == third
    )


def test_a_uri_stays_as_it_is() -> None:
    """Clips may lie elsewhere; only paths are normalised."""
    (question,) = parse_rows({**BENCHMARK, "audio_path": "s3://clips/a/../b.wav"})
    assert isinstance(question, Question)
    assert "s3://clips/a/../b.wav" == question.audio


def test_blind_rows_have_no_answer() -> None:
    """A benchmark without gold answers parses; only grading refuses it."""
    (question,) = parse_rows({key: BENCHMARK[key] for key in BENCHMARK if key != "answer"})
    assert isinstance(question, Question)
    assert question.answer is None


def test_whole_numbers_and_other_spellings_count_as_text() -> None:
    """Counts come as numbers, answers in another case; the choice's own text is kept."""
    row = {**BENCHMARK, "id": 7, "choices": [1, "Two  Bells"], "answer": "two bells"}
    (question,) = parse_rows(row)
    assert isinstance(question, Question)
    assert ("7", ("1", "Two  Bells"), "Two  Bells") == (
        question.id, question.choices, question.answer,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("question", "listed"),
    [
        ("Q?\nChoices:\n- A a\n- B b", Listed("Q?", ("A a", "B b"), ())),
        ("Q?\n\nChoices:\nYes\nNo\n", Listed("Q?", ("Yes", "No"), ())),
        ("Q?\nOptions:\n-5\n5", Listed("Q?", ("-5", "5"), ())),
        ("Q?\nChoices:\n- 1. May\n- 2. May", Listed("Q?", ("1. May", "2. May"), ())),
        ("Q?\nChoices:\n(A) x\n(B) y", Listed("Q?", ("x", "y"), ("A", "B"))),
        ("Q?\nChoices:\na) x\nb) y", Listed("Q?", ("x", "y"), ("a", "b"))),
        ("Q?\nChoices:\n1. x\n2. y\n3. z", Listed("Q?", ("x", "y", "z"), ("1", "2", "3"))),
        ("Q?\nChoices:\n3. x\n2. y", Listed("Q?", ("3. x", "2. y"), ())),
        ("Q?\nChoices:\n(A) x\ny", Listed("Q?", ("(A) x", "y"), ())),
        ("<sound>\nQ?\n\nChoose the correct option:\n(A) x\n(B) y",
         Listed("Q?", ("x", "y"), ("A", "B"))),
        ("Q? Choose the correct option from the following options:\n(A) x\n(B) y\n<sound>",
         Listed("Q?", ("x", "y"), ("A", "B"))),
        ("Q?\n(A) x\n(B) y", Listed("Q?", ("x", "y"), ("A", "B"))),
        ("Choices:\nwhich?\nChoices:\n- x\n- y", Listed("Choices:\nwhich?", ("x", "y"), ())),
        ("Which did they choose?", Listed("Which did they choose?", (), ())),
        ("", Listed("", (), ())),
    ],
)  # fmt: skip
def test_listed_choices_are_taken_out_of_the_text(question: str, listed: Listed) -> None:
    """Bullets and running labels are the list's, everything else is the choice's."""
    assert listed == take_choices(question)


@pytest.mark.parametrize(
    ("answer", "choice"),
    [("x", "x"), (" X ", "x"), ("(B) y", "y"), ("B. y", "y"), ("(A) y", "y"), ("B", "y"),
     ("(A)", "x"), ("A.", "x"), ("C", None), ("z", None), ("", None)],
)  # fmt: skip
def test_a_gold_answer_may_carry_its_label(answer: str, choice: str | None) -> None:
    """Data sets write gold answers with labels; a model's answers are never read this way."""
    assert choice == match_answer(answer, Listed("Q?", ("x", "y"), ("A", "B")))


CHOICES = st.lists(
    st.from_regex(r"[A-Za-z0-9,.' ]{0,10}[a-z]", fullmatch=True).map(str.strip),
    min_size=2, max_size=6, unique_by=canonical,
)  # fmt: skip


@given(CHOICES, st.data())
def test_bulleted_choices_come_back_as_they_were(choices: list[str], data: st.DataObject) -> None:
    """The training format keeps every choice word for word."""
    answer = data.draw(st.sampled_from(choices))
    listing = "".join(f"\n- {choice}" for choice in choices)
    (question,) = parse_rows(
        {**TRAINING, "question": f"<sound>\nWhat?\n\nChoices:{listing}", "answer": answer}
    )
    assert isinstance(question, Question)
    assert (tuple(choices), answer) == (question.choices, question.answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted({*BENCHMARK, *TRAINING, "text", "audio"})), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=4), st.binary(max_size=20))
def test_no_row_raises(rows: Sequence[object], noise: bytes) -> None:
    """Whatever a file holds, each row is a question or says why not."""
    changed = [BENCHMARK | row if isinstance(row, dict) else row for row in rows]
    lines = [*(json.dumps(row).encode() for row in [*rows, *changed]), noise]
    for parsed in parse_questions(lines, "here"):
        assert isinstance(parsed, Question) or parsed.reason


@pytest.mark.parametrize(
    ("url", "names", "ids"),
    [
        ("https://www.youtube.com/watch?v=dQw4w9WgXcQ&list=x", (), ("youtube:dQw4w9WgXcQ",)),
        ("https://www.youtube.com/watch?list=x&v=dQw4w9WgXcQ", (), ("youtube:dQw4w9WgXcQ",)),
        ("https://www.youtube.com/shorts/dQw4w9WgXcQ?feature=share", (), ("youtube:dQw4w9WgXcQ",)),
        ("https://youtu.be/dQw4w9WgXcQ?t=3", (), ("youtube:dQw4w9WgXcQ",)),
        ("https://www.bilibili.com/video/BV1AeZzYTEKq/?x=1", (), ("bilibili:BV1AeZzYTEKq",)),
        ("https://Freesound.org/s/12/", (), ("web:freesound.org/s/12",)),
        ("", (), ()),
        ("not a url", (), ()),
        ("http://[broken", (), ()),
        ("", ("a/dQw4w9WgXcQ_00-00-01_00-00-09.wav",), ("youtube:dQw4w9WgXcQ",)),
        ("", ("BV1AeZzYTEKq_00-00-24_00-00-54",), ("bilibili:BV1AeZzYTEKq",)),
        ("", ("BV-Zz_TEK_q_00-00-24_00-00-54",), ("youtube:BV-Zz_TEK_q",)),
        ("", ("count_7", "xx-count_7_00-00-24"), ()),
        (
            "https://youtu.be/dQw4w9WgXcQ", ("BV1AeZzYTEKq_00-00-24_00-00-54",),
            ("bilibili:BV1AeZzYTEKq", "youtube:dQw4w9WgXcQ"),
        ),
    ],
)  # fmt: skip
def test_sources_are_named(url: str, names: tuple[str, ...], ids: tuple[str, ...]) -> None:
    """One recording has one name, wherever it is mentioned."""
    assert ids == source_ids(url, *names)


@pytest.fixture(scope="module")
def real_questions() -> list[Question]:
    """The first 100 real rows of the benchmark, where they are at hand."""
    if not REAL_ROWS.exists():
        pytest.skip(f"the benchmark's rows are not at {REAL_ROWS}")
    parsed = list(parse_questions(REAL_ROWS.read_bytes().splitlines(), "mmar"))
    assert [] == [row for row in parsed if isinstance(row, BadRow)]
    return [row for row in parsed if isinstance(row, Question)]


def test_all_real_rows_parse_and_render(real_questions: list[Question]) -> None:
    """A hundred questions with their sources; every prompt shows every choice and no metadata."""
    assert 100 == len(real_questions) == len({question.id for question in real_questions})
    for question in real_questions:
        assert 1 == len(question.source_ids)
        assert question.audio.startswith("audio/")
        for version in SYSTEM_BY_VERSION:
            prompt = render(question, version)
            assert all(f"- {choice}" in prompt.user for choice in question.choices)
            assert question.category not in prompt.system + prompt.user


def test_all_real_choices_grade_as_themselves(real_questions: list[Question]) -> None:
    """A completion made from the gold answer is CORRECT, from any other choice WRONG."""
    for question in real_questions:
        for choice in question.choices:
            for answer in (choice, f"**{choice}**", f"The answer is {choice}", f"{choice}."):
                completion = f"<think>I hear it.</think>\n\n{answer}"
                parsed = parse(completion, Finish.STOP, question.choices)
                expected = Grade.CORRECT if choice == question.answer else Grade.WRONG
                assert expected == grade_answer(parsed.answer, Finish.STOP, question)


def test_real_gold_answers_score_full_marks(real_questions: list[Question]) -> None:
    """Answered with its own gold the benchmark's head scores 100 % both ways."""
    gold = {question.id: question.answer or "" for question in real_questions}
    result = score(gold, real_questions)
    assert (1.0, 1.0) == (result.official_accuracy, result.strict_accuracy)
