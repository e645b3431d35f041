"""Tests of what each data set's rows become, and of what is said of rows that are none."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmar_jobs.datasets.countingqa import parse_count, read_countingqa
from mmar_jobs.datasets.drafts import Draft, LeftOut
from mmar_jobs.datasets.musicbench import read_musicbench
from mmar_jobs.datasets.tables import read_tables
from mmar_jobs.datasets.tacos import read_tacos
from mmar_jobs.errors import DataError

# As the viewer of amaai-lab/MusicBench shows its rows.
MUSIC = {
    "dataset": "MusicBench",
    "location": "data_aug2/-0SdAVK79lg_1.wav",
    "main_caption": "This mellow instrumental track is rock with an electric guitar. It is in E.",
    "alt_caption": "This song features an electric guitar.",
    "prompt_aug": "",
    "prompt_ch": "The chord progression in this song is E.",
    "prompt_bt": "The beat counts to 4.",
    "prompt_bpm": "The bpm is 112.0.",
    "prompt_key": "The key of this song is E major.",
    "beats": [[0.37, 0.9], [3.0, 4.0]],
    "bpm": 112.0,
    "chords": ["E"],
    "chords_time": [0.54],
    "key": ["E", "major"],
    "keyprob": [0.89],
    "is_audioset_eval_mcaps": False,
}


TABLE = {
    "id": "1",
    "audio_path": "a.wav",
    "audio_dir": "b",
    "question": "?",
    "choices": ["x", "y"],
    "answer": "x",
    "category": "c",
    "language": "en",
    "url": "https://youtu.be/-0SdAVK79lg",
    "source_ids": ["web:x"],
    "key": ["E", "major"],
    "keyprob": [0.9],
    "bpm": 100,
    "location": "-0SdAVK79lg.wav",
    "main_caption": "x",
    "filename": "a.wav",
    "text": "x",
    "onset": 0,
    "offset": 1,
}


def counting(question: str, answer: str, **values: object) -> dict[str, Any]:
    """A row as AudioSkills writes it."""
    turns = [{"from": "human", "value": f"<sound>\n{question}"}, {"from": "gpt", "value": answer}]
    known = {"id": "7", "sound": "concat_7.wav", "duration": 9.5, "conversations": turns}
    return known | values


def write(path: Path, rows: Iterable[object]) -> Path:
    """Rows as a JSON array, JSON lines or CSV, by the suffix."""
    rows = list(rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)  # type: ignore[arg-type]
    return path


def only(found: Iterable[Draft | LeftOut]) -> Draft:
    """The one draft."""
    (draft,) = found
    assert isinstance(draft, Draft), draft
    return draft


def said(found: Iterable[Draft | LeftOut]) -> list[str]:
    """Why rows were left out."""
    return [item.reason for item in found if isinstance(item, LeftOut)]


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        ("The bell ringing happens three times in this audio.", 3),
        ("Twice.", 2),
        ("once", 1),
        ("The dog never barks.", 0),
        ("One dog barks four times.", 4),
        ("There are 12 gunshots", 12),
        ("Two", 2),
        ("It occurs 3 times, that is, three times.", 3),
        ("seventeen occurrences", 17),
        ("10", 10),
    ],
)
def test_a_count_is_read_out_of_a_sentence(answer: str, count: int) -> None:
    """Numerals, words, and times before other numbers."""
    assert count == parse_count(answer)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Quite often.", "no number"),
        ("", "no number"),
        ("Someone barks.", "no number"),
        ("Between 2 and 4", "several"),
        ("two times or three times", "several"),
        ("3.5", "no number"),
        ("v2 of the sound", "no number"),
    ],
)
def test_no_count_is_guessed(answer: str, reason: str) -> None:
    """Without exactly one number there is no gold answer."""
    with pytest.raises(ValueError, match=reason):
        parse_count(answer)


@given(st.integers(0, 999))
def test_numerals_are_read_as_they_are(count: int) -> None:
    """Also within a sentence."""
    assert count == parse_count(f"The tone is heard {count} times.") == parse_count(f"{count}.")


def test_counting_rows_become_drafts(tmp_path: Path) -> None:
    """A count becomes a numeral of one pool, another answer meets the same question's answers."""
    rows = [
        counting("How many times does the bell ring?", "It rings three times."),
        counting("Which sound comes last?", "Dog barking", id="8", sound="concat_8.wav"),
        counting("What is first?\nChoices:\n(A) Bell\n(B) Dog", "(B) Dog", id="9"),
        {"id": "10", "sound": "concat_9.wav", "question": "How often?", "answer": "Twice"},
    ]
    write(tmp_path / "CountingQA.json", rows)
    drafts = [d for d in read_countingqa(tmp_path, "countingqa", 0) if isinstance(d, Draft)]
    assert ["3", "Dog barking", "Dog", "2"] == [draft.answer for draft in drafts]
    assert ["count", "which sound comes last?", "", "count"] == [draft.pool for draft in drafts]
    assert ("Bell", "Dog") == drafts[2].choices
    assert "How many times does the bell ring?" == drafts[0].text
    assert "concat_7.wav" == drafts[0].audio
    assert 4 == len({draft.id for draft in drafts})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (counting("How many?", "Some"), "no number"),
        (counting("How many?", "1") | {"sound": None}, "has no sound"),
        (
            counting("How many?", "1") | {"conversations": [{"from": "gpt", "value": "1"}]},
            "no turn",
        ),
        (counting("", "1"), "question is empty"),
        (counting("What?\nChoices:\n(A) x\n(B) y", "z"), "not among its choices"),
        ({"id": 1, "sound": "a.wav"}, "has no question"),
        ({"id": 1, "sound": ["a"], "question": "How many?", "answer": 1}, "must be text"),
        ("no object", "is not an object"),
        (None, "is not an object"),
    ],
)
def test_bad_counting_rows_are_named(row: object, reason: str, tmp_path: Path) -> None:
    """Each with its file and number; the good one beside it is kept."""
    good = counting("How many?", "1", id="good")
    path = write(tmp_path / "CountingQA.json", [row, good])
    found = list(read_countingqa(path, "countingqa", 0))
    assert reason in said(found)[0]
    assert ["CountingQA.json 1"] == [item.row for item in found if isinstance(item, LeftOut)]
    assert 1 == sum(isinstance(item, Draft) for item in found)


def test_music_rows_become_three_questions(tmp_path: Path) -> None:
    """Caption, key and tempo; an augmented copy belongs to its video."""
    write(tmp_path / "MusicBench_train.json", [MUSIC])
    drafts = [d for d in read_musicbench(tmp_path, "musicbench", 0) if isinstance(d, Draft)]
    assert ["music caption", "music key", "music tempo"] == [draft.category for draft in drafts]
    assert [MUSIC["main_caption"], "E major", "112 beats per minute"] == [d.answer for d in drafts]
    assert ["caption rock", "key", "tempo"] == [draft.pool for draft in drafts]
    assert {("youtube:-0SdAVK79lg",)} == {draft.source_ids for draft in drafts}
    assert {"-0SdAVK79lg"} == {draft.owner for draft in drafts}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"location": "x.wav"}, "does not begin with a video's id"),
        ({"location": None}, "has no location"),
        ({"main_caption": "x" * 800}, "more than 700 characters"),
        ({"keyprob": [0.3]}, "less than 0.6 certainty"),
        ({"keyprob": []}, "keyprob is not"),
        ({"key": ["H", "major"]}, "not a tonic"),
        ({"key": "E major"}, "key is not [tonic, mode]"),
        ({"bpm": 1000}, "not from 30 to 300"),
        ({"bpm": "fast"}, "fast"),
    ],
)
def test_bad_music_rows_are_named(values: dict[str, object], reason: str, tmp_path: Path) -> None:
    """A bad field costs its own question, not the others of the row."""
    path = write(tmp_path / "m.json", [MUSIC | values])
    found = list(read_musicbench(path, "musicbench", 0))
    assert any(reason in text for text in said(found))
    assert (0 if "location" in values else 2) == sum(isinstance(item, Draft) for item in found)


def test_musiccaps_rows_find_the_clips_that_fetch_cut(tmp_path: Path) -> None:
    """The name of a clip follows from video and start, as `fetch audio` gives it."""
    rows = [("ytid", "start_s", "end_s", "caption"), ("-0SdAVK79lg", 30, 40, "A jazz tune.")]
    path = write(tmp_path / "musiccaps.csv", rows)
    draft = only(read_musicbench(path, "musiccaps", 0))
    assert "audio/-0SdAVK79lg_00-00-30_00-00-40.flac" == draft.audio
    assert "caption jazz" == draft.pool


def tacos(tmp_path: Path, rows: Sequence[Sequence[object]], metadata: str = "") -> list[Any]:
    """What TACOS annotations become."""
    head = ("filename", "text", "onset", "offset")
    write(tmp_path / "annotations_strong.csv", [head, *rows])
    if metadata:
        (tmp_path / "metadata.csv").write_text(metadata)
    return list(read_tacos(tmp_path, "tacos", 0))


def test_strong_captions_become_questions(tmp_path: Path) -> None:
    """What is heard, against other recordings of the subclass, and what is heard first."""
    rows = [
        ("a.mp3", "A dog barks, twice.", 2.0, 3.0),
        ("a.mp3", "Rain falls.", 0.5, 9.0),
        ("a.mp3", "A dog barks, twice.", 5.0, 6.0),
        ("b.mp3", "A car passes.", 0, 3),
    ]
    metadata = "filename,freesound_id,superclass,subclass\na.mp3,123,Nature,Weather\n"
    heard, order, other = tacos(tmp_path, rows, metadata)
    assert ("sound heard", "heard Weather") == (heard.category, heard.pool)
    assert {"A dog barks, twice.", "Rain falls."} == set(heard.also_true)
    assert ("freesound:123",) == heard.source_ids == order.source_ids
    assert "Rain falls." == order.answer
    assert ("Rain falls.", "A dog barks, twice.") == order.choices
    assert ("heard ", ()) == (other.pool, other.source_ids)


def test_an_unclear_order_is_not_asked(tmp_path: Path) -> None:
    """Onsets less than half a second apart are not in a sure order."""
    rows = [("a.mp3", "x", 1.0, 2.0), ("a.mp3", "y", 1.3, 2.0), ("a.mp3", "z", 4, 5)]
    assert ["sound heard"] == [draft.category for draft in tacos(tmp_path, rows)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("a.mp3", "", 0, 1), "has no text"),
        (("", "x", 0, 1), "has no filename"),
        (("a.mp3", "x", "soon", 1), "is not a number"),
        (("a.mp3", "x", 2, 1), "has no length"),
        (("a.mp3", "x", -1, 1), "has no length"),
        (("a.mp3", "x", 0, "inf"), "has no length"),
        (("a.mp3", "x", "nan", 1), "has no length"),
        (("a.mp3", "x", 0), "has not 4 columns"),
        (("a.mp3", "x", 0, 1, 2), "has not 4 columns"),
    ],
)
def test_bad_annotations_are_named(row: tuple[object, ...], reason: str, tmp_path: Path) -> None:
    """With file and line."""
    (left_out,) = tacos(tmp_path, [row])
    assert reason in left_out.reason
    assert "annotations_strong.csv 2" == left_out.row


def test_tables_are_read_by_their_columns(tmp_path: Path) -> None:
    """Choices as JSON, with bars, as columns, in the question's text, or none at all."""
    head = ("question_id", "file_name", "question", "options", "answer", "task")
    rows = [
        head,
        ("1", "a.wav", "What?", '["x", "y"]', "y", "t"),
        ("2", "a.wav", "What?", "x | y | z", "z", "t"),
        ("3", "a.wav", "What? Choose one option:\n(A) x\n(B) y", "", "B", "t"),
        ("4", "a.wav", "What?", "", "open", "t"),
    ]
    path = write(tmp_path / "q.csv", rows)
    drafts = [d for d in read_tables(path, "table", 0) if isinstance(d, Draft)]
    assert [("x", "y"), ("x", "y", "z"), ("x", "y"), ()] == [d.choices for d in drafts]
    assert ["y", "z", "y", "open"] == [draft.answer for draft in drafts]
    assert {"t"} == {draft.category for draft in drafts}
    head = ("id", "audio", "text", "choice_a", "choice_b", "answer")
    path = write(tmp_path / "r.csv", [head, ("1", "a.wav", "What?", "x", "y", "y")])
    assert ("x", "y") == only(read_tables(path, "table", 0)).choices


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"answer": "z"}, "not among its choices"),
        ({"answer": None}, "has no answer"),
        ({"question": None}, "has no question"),
        ({"audio_path": None}, "has no audio_path"),
        ({"choices": {"a": 1}}, "must be a list"),
        ({"choices": ["x", ["y"]]}, "must be text"),
        ({"choices": "[x"}, "are no JSON list"),
        ({"choices": ["x", ""]}, "has no choices"),
    ],
)
def test_bad_table_rows_are_named(values: dict[str, object], reason: str, tmp_path: Path) -> None:
    """Whatever a row holds, the reader says what is wrong and goes on."""
    row = {key: TABLE[key] for key in ("id", "audio_path", "question", "choices", "answer")}
    path = write(tmp_path / "q.jsonl", [row | values, row])
    found = list(read_tables(path, "table", 0))
    assert reason in said(found)[0]
    assert isinstance(found[1], Draft)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
_FIELDS = st.sampled_from(
    [*MUSIC, "ytid", "start_s", "conversations", "question", "answer", "sound", "choices", "id"]
)


@given(st.sampled_from([MUSIC, counting("How many?", "1"), TABLE]), st.data())
def test_no_field_stops_a_reader(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any], data: st.DataObject
) -> None:
    """One field of a good row replaced by any JSON costs that row at most."""
    broken = row | {data.draw(st.sampled_from(sorted(row))): data.draw(_JSON)}
    path = write(tmp_path_factory.mktemp("rows") / "x.jsonl", [broken])
    for read in (read_countingqa, read_musicbench, read_tables, read_tacos):
        for item in read(path, "x", 0):
            assert isinstance(item, Draft) or item.reason


@given(st.lists(st.dictionaries(_FIELDS, _JSON, max_size=6), min_size=1, max_size=4))
def test_no_row_stops_a_reader(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]
) -> None:
    """Every row gives drafts or a reason, whatever its fields hold."""
    path = write(tmp_path_factory.mktemp("rows") / "x.jsonl", rows)
    for read in (read_countingqa, read_musicbench, read_tables, read_tacos):
        for item in read(path, "x", 0):
            assert isinstance(item, Draft) or item.reason


@pytest.mark.parametrize("read", [read_countingqa, read_musicbench, read_tacos, read_tables])
def test_an_empty_folder_is_an_error(read: Any, tmp_path: Path) -> None:
    """The name of the file that should be there is in the message."""
    with pytest.raises(DataError, match="has no"):
        list(read(tmp_path, "x", 0))
