"""Tests of the submission file: its bytes, its problems, its reading."""

import hashlib
import io
import json
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmar_jobs.errors import GateError
from mmar_jobs.records import Prediction, Question
from mmar_jobs.submission import (
    MAX_RESULT_BYTES,
    MAX_THINKING_CHARACTERS,
    num_over_long,
    pack,
    problems,
)

QUESTIONS = [
    Question(id=f"q{i}", audio="a.wav", text="What?", choices=("Yes", "No"), answer="Yes")
    for i in range(3)
]


def prediction_of(key: str, answer: str = "Yes", thinking: str = "rain") -> Prediction:
    """Build a prediction."""
    return Prediction(id=key, thinking_prediction=thinking, answer_prediction=answer, votes={})


PREDICTIONS = [prediction_of(f"q{i}") for i in range(3)]
ROWS = [
    {"id": f"q{i}", "thinking_prediction": "rain", "answer_prediction": "Yes"} for i in range(3)
]


def zip_of(
    result: bytes, *, name: str = "result.jsonl", method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """Zip one file as another tool would."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, result)
    return buffer.getvalue()


def jsonl_of(*rows: object) -> bytes:
    """Write rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_packed_submission_has_no_problems() -> None:
    """What pack makes is what validate accepts: one file at top level."""
    data = pack(PREDICTIONS, QUESTIONS)
    assert [] == problems(data, QUESTIONS)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert ["result.jsonl"] == archive.namelist()
        rows = [json.loads(line) for line in archive.read("result.jsonl").splitlines()]
    assert ROWS == rows


def test_the_bytes_never_change() -> None:
    """Same answers, same digest, on any machine and in any order."""
    data = pack(PREDICTIONS[::-1], QUESTIONS)
    digest = "33fcdd32a7a466ab778403602f107d6b1557363c602e555c127be9e180f18ac0"
    assert digest == hashlib.sha256(data).hexdigest()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(st.permutations(range(3)), st.lists(TEXTS, min_size=3, max_size=3))
def test_any_thinking_survives(order: list[int], thinking: list[str]) -> None:
    """Line breaks of every kind, emoji and quotes come back as they were, in whatever order."""
    predictions = [prediction_of(f"q{i}", thinking=thinking[i]) for i in range(3)]
    data = pack([predictions[i] for i in order], QUESTIONS)
    assert pack(predictions, QUESTIONS) == data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        lines = archive.read("result.jsonl").decode().splitlines()
    assert thinking == [json.loads(line)["thinking_prediction"] for line in lines]


@pytest.mark.parametrize(("length", "kept"), [(9_999, 9_999), (10_000, 9_999), (30_000, 9_999)])
def test_over_long_thinking_is_cut_verbatim_and_counted(length: int, kept: int) -> None:
    """The beginning stays as the model emitted it, without a mark, and the cut is countable."""
    thinking = "".join(chr(97 + i % 26) for i in range(length))
    predictions = [*PREDICTIONS[:2], prediction_of("q2", thinking=thinking)]
    rows = zipfile.ZipFile(io.BytesIO(pack(predictions, QUESTIONS))).read("result.jsonl")
    packed = json.loads(rows.splitlines()[2])["thinking_prediction"]
    assert thinking[:kept] == packed
    assert int(length > MAX_THINKING_CHARACTERS) == num_over_long(predictions)


@pytest.mark.parametrize(
    ("predictions", "problem"),
    [
        (PREDICTIONS[:2], "1 problems, first: missing id 'q2'"),
        ([*PREDICTIONS, PREDICTIONS[0]], "1 problems, first: duplicate id 'q0': 2 lines"),
        ([*PREDICTIONS, prediction_of("z")], "1 problems, first: line 4: unknown id 'z'"),
        ([*PREDICTIONS[1:], prediction_of("q0", "yes")], "answer_prediction 'yes', which is not"),
    ],
)
def test_a_wrong_submission_is_never_packed(predictions: list[Prediction], problem: str) -> None:
    """Missing, repeated, unknown ids and answers that are no choice stop the packing."""
    with pytest.raises(GateError, match=problem):
        pack(predictions, QUESTIONS)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (jsonl_of(*ROWS), []),
        (jsonl_of(*ROWS)[:-1], []),
        (jsonl_of(*ROWS).replace(b"\n", b"\r\n"), []),
        (jsonl_of(*({**row, "note": 1} for row in ROWS)), []),
        (b"", ["missing id 'q0'", "missing id 'q1'", "missing id 'q2'"]),
        (jsonl_of(*ROWS[:2]), ["missing id 'q2'"]),
        (jsonl_of(*ROWS, ROWS[1]), ["duplicate id 'q1': 2 lines"]),
        (jsonl_of(*ROWS, {**ROWS[0], "id": "z"}), ["line 4: unknown id 'z'"]),
        (
            jsonl_of(*ROWS[:2], {**ROWS[2], "answer_prediction": "B"}),
            ["line 3: id 'q2' has answer_prediction 'B', which is not one of its choices"],
        ),
        (
            jsonl_of(*ROWS[:2], {**ROWS[2], "thinking_prediction": "x" * 10_000}),
            [
                "line 3: id 'q2' has thinking_prediction of 10000 characters, at most 9999 are "
                "allowed"
            ],
        ),
        (
            jsonl_of(*ROWS[:2], {"id": "q2"}),
            [
                "line 3: id 'q2' has no thinking_prediction, or one that is not text",
                "line 3: id 'q2' has no answer_prediction, or one that is not text",
            ],
        ),
        (
            jsonl_of(*ROWS, {**ROWS[0], "id": 7}),
            ["line 4: has no id, or one that is not text"],
        ),
        (jsonl_of(*ROWS, [1]), ["line 4: is not a JSON object"]),
        (jsonl_of(*ROWS) + b'{"id": "\xff"}', ["line 4: is not UTF-8 text"]),
    ],
)
def test_every_problem_of_a_result_is_named(result: bytes, expected: list[str]) -> None:
    """One sentence a problem, with the line or the id."""
    assert expected == problems(zip_of(result), QUESTIONS)


@pytest.mark.parametrize(
    ("line", "start"),
    [
        (b"{broken", "line 2: is not JSON: Expecting property name"),
        (b"", "line 2: is not JSON: Expecting value"),
        (b'{"id": "q1", "id": "q0"}', "line 2: is not JSON: an object names a field twice"),
        (b"[" * 100_000, "line 2: is not JSON: maximum recursion depth"),
        (b"9" * 5_000, "line 2: is not JSON: Exceeds the limit"),
    ],
)
def test_a_broken_line_is_named_and_the_others_still_count(line: bytes, start: str) -> None:
    """One bad line does not hide what the others say."""
    first, second, third = jsonl_of(*ROWS).splitlines()
    found = problems(zip_of(b"\n".join([first, line, second, third])), QUESTIONS)
    assert 1 == len(found)
    assert found[0].startswith(start)


def encrypted() -> bytes:
    """Mark a zip's only file as encrypted."""
    data = bytearray(zip_of(jsonl_of(*ROWS), method=zipfile.ZIP_STORED))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def corrupted() -> bytes:
    """Change one stored byte so that the checksum no longer fits."""
    data = bytearray(pack(PREDICTIONS, QUESTIONS))
    data[data.index(b"rain")] ^= 1
    return bytes(data)


def with_folder_entry() -> bytes:
    """Zip the right file beside what an archiver of some desktop adds."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("result.jsonl", jsonl_of(*ROWS))
        archive.writestr("__MACOSX/._result.jsonl", b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not a readable zip file: File is not a zip file"),
        (b"PK\x03\x04 and then nothing", "not a readable zip file"),
        (jsonl_of(*ROWS), "not a readable zip file"),
        (pack(PREDICTIONS, QUESTIONS)[:-30], "not a readable zip file"),
        (corrupted(), "not a readable zip file: Bad CRC-32"),
        (encrypted(), "encrypted or oddly compressed"),
        (zip_of(b"", name="results.jsonl"), "nothing else, it holds 1 files: ['results.jsonl']"),
        (zip_of(b"", name="out/result.jsonl"), "it holds 1 files: ['out/result.jsonl']"),
        (with_folder_entry(), "it holds 2 files"),
        (zip_of(b"x", method=zipfile.ZIP_LZMA), "packed by method 14: use deflate or none"),
    ],
)
def test_a_wrong_archive_is_one_problem(data: bytes, problem: str) -> None:
    """Not a zip, not the file, not readable: said once, without a traceback."""
    found = problems(data, QUESTIONS)
    assert 1 == len(found)
    assert problem in found[0]


def test_a_zip_bomb_is_refused_by_what_comes_out() -> None:
    """Reading stops at the limit, whatever the archive claims to hold."""
    found = problems(zip_of(b" " * (MAX_RESULT_BYTES + 10)), QUESTIONS)
    assert [f"result.jsonl unpacks to more than {MAX_RESULT_BYTES} bytes"] == found


@settings(max_examples=150)
@given(st.data())
def test_no_damage_raises(data: st.DataObject) -> None:
    """Whatever bytes change, problems() answers with sentences."""
    damaged = bytearray(pack(PREDICTIONS, QUESTIONS))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    assert all(isinstance(problem, str) for problem in problems(bytes(damaged), QUESTIONS))
