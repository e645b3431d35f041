"""Tests of `data build`: what rows become, in which numbers, with which bytes."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from scipy import stats

from mmar_jobs.cli import run_command
from mmar_jobs.datasets.mmar import parse_questions
from mmar_jobs.records import Question, canonical
from mmar_jobs.tiny.build import TinyWorld
from tests.datasets.build_cases import (
    GOOD,
    all_bytes,
    build,
    left_out,
    read_manifest,
    read_split,
    sides,
    sources,
    table,
    write_clip,
    write_counting,
)

REAL_ROWS = Path(__file__).parents[3] / "shared" / "data" / "mmar-head.jsonl"


def test_every_source_becomes_valid_questions(folders: dict[str, Path], tmp_path: Path) -> None:
    """Answers are among the choices once, clips are there, counts add up, the manifest agrees."""
    output = tmp_path / "out"
    assert 0 == build(output, *sources(folders))
    questions = [*read_split(output), *read_split(output, "heldout")]
    assert {"countingqa", "musicbench", "tacos"} == {question.dataset for question in questions}
    for question in questions:
        forms = [canonical(choice) for choice in question.choices]
        assert question.answer is not None
        assert 1 == forms.count(canonical(question.answer))
        assert (output / question.audio).is_file()
    assert len({question.id for question in questions}) == len(questions)
    counts = read_manifest(output)["counts"]
    assert len(questions) == sum(count["num_questions"] for count in counts.values())
    num_left_out = sum(sum(v.values()) for v in read_manifest(output)["left_out"].values())
    assert len(left_out(output)) == num_left_out


def test_ingest_takes_what_build_wrote(
    folders: dict[str, Path], world: TinyWorld, tmp_path: Path
) -> None:
    """Both splits and the tiny benchmark go through `ingest --strict`; nothing is rejected."""
    output = tmp_path / "out"
    assert 0 == build(output, *sources(folders))
    arguments = ["--store", str(tmp_path / "store"), "--run-id", "r", "--strict"]
    arguments += ["--questions", str(output / "train.jsonl")]
    arguments += ["--heldout", str(output / "heldout.jsonl"), "--benchmark", str(world.benchmark)]
    assert 0 == run_command("ingest", arguments)


def test_the_same_seed_gives_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    """Every file, whatever the number of processes; another seed gives others."""
    for name, flags in (("a", ()), ("b", ("--jobs", "2")), ("c", ("--seed", "1"))):
        assert 0 == build(tmp_path / name, *sources(folders), *flags)
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")
    assert all_bytes(tmp_path / "a")["train.jsonl"] != all_bytes(tmp_path / "c")["train.jsonl"]


def test_ratios_are_exact(folders: dict[str, Path], tmp_path: Path) -> None:
    """2 : 1 : 1 of forty are 20, 10 and 10."""
    flags = [
        flag
        for (kind, folder), ratio in zip(folders.items(), ("0.5", "0.25", "1/4"), strict=True)
        for flag in ("--source", f"{kind}={folder}:{ratio}")
    ]
    assert 0 == build(tmp_path / "o", *flags, "--total", "40")
    found = Counter(q.dataset for side in sides(tmp_path / "o") for q in side)
    assert {"countingqa": 20, "musicbench": 10, "tacos": 10} == dict(found)


def test_counts_cannot_be_guessed(tmp_path: Path) -> None:
    """On skewed counts every text-only guesser stays at chance, and positions are uniform."""
    folder = write_counting(tmp_path / "c", 1500, per_clip=1)
    assert 0 == build(tmp_path / "o", "--source", f"countingqa={folder}", "--heldout-share", "0")
    questions = read_split(tmp_path / "o")
    assert len(questions) > 800
    guesses = read_manifest(tmp_path / "o")["text_only"]["countingqa: counting"]
    assert {"first", "longest", "median", "smallest", "commonest"} <= set(guesses)
    for name, guess in guesses.items():
        assert abs(guess["accuracy"] - 0.25) < 4 * (0.1875 / len(questions)) ** 0.5, name
    positions = Counter(question.choices.index(question.answer or "") for question in questions)
    assert stats.chisquare(list(positions.values())).pvalue > 1e-4
    reasons = read_manifest(tmp_path / "o")["left_out"]["countingqa"]
    assert {"its answer is too frequent to hide among choices"} == set(reasons)
    assert 1500 == len(questions) + sum(reasons.values())


def test_skewed_answers_are_kept_where_asked_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the guessers find them, and the command says so."""
    folder = write_counting(tmp_path / "c", 400, per_clip=1)
    flags = ("--source", f"countingqa={folder}", "--keep-skewed")
    path = folder / "CountingQA.json"
    path.write_text(path.read_text().replace("occurs three times", "occurs two times"))
    assert 0 == build(tmp_path / "o", *flags)
    assert 400 == sum(len(side) for side in sides(tmp_path / "o"))
    assert "always the commonest choice is right" in capsys.readouterr().out


def test_wrong_captions_are_of_the_same_genre(folders: dict[str, Path], tmp_path: Path) -> None:
    """Hard negatives: rock stands beside rock, and never beside a copy of itself."""
    flags = ("--source", f"musicbench={folders['musicbench']}", "--heldout-share", "0")
    assert 0 == build(tmp_path / "o", *flags)
    for question in read_split(tmp_path / "o"):
        if question.category == "music caption":
            assert 1 == len({("rock" in choice) for choice in question.choices})
            assert 4 == len(set(question.choices))


def test_the_real_rows_go_round(tmp_path: Path) -> None:
    """100 rows of MMAR: the same questions, choices, answers and sources come out."""
    if not REAL_ROWS.exists():
        pytest.skip("the benchmark's rows are not here")
    before = list(parse_questions(REAL_ROWS.read_bytes().splitlines(), "mmar"))
    folder = tmp_path / "mmar"
    for i, question in enumerate(before):
        assert isinstance(question, Question)
        write_clip(folder / question.audio, i)
    shutil.copy(REAL_ROWS, folder / "MMAR-meta.jsonl")
    source = f"table={folder / 'MMAR-meta.jsonl'}"
    assert 0 == build(tmp_path / "o", "--source", source, "--heldout-share", "0")
    after = {question.id: question for question in read_split(tmp_path / "o")}
    assert 100 == len(before) == len(after)
    for old in before:
        assert isinstance(old, Question)
        new = after[old.id]
        assert sorted(old.choices) == sorted(new.choices)
        assert old.text.strip() == new.text
        kept = ("answer", "modality", "category", "sub_category", "language", "source_ids")
        assert [getattr(old, name) for name in kept] == [getattr(new, name) for name in kept]
        assert (folder / old.audio).read_bytes() == (tmp_path / "o" / new.audio).read_bytes()


def test_what_cannot_be_used_is_counted_and_listed(tmp_path: Path) -> None:
    """Missing clips, taken ids, bad choices: each with its row and reason."""
    rows = [
        GOOD | {"id": "good"},
        GOOD | {"id": "good"},
        GOOD | {"id": "lost", "audio": "b.wav"},
        GOOD | {"id": "evil", "audio": "../../../etc/passwd.wav"},
        GOOD | {"id": "same", "choices": ["x", "X "]},
        GOOD | {"id": "none", "choices": [], "answer": "lonely"},
    ]
    source = table(tmp_path / "s", rows)
    assert 0 == build(tmp_path / "o", "--source", source, "--heldout-share", "0")
    assert ["good"] == [question.id for question in read_split(tmp_path / "o")]
    found = {entry["row"]: entry["reason"] for entry in left_out(tmp_path / "o")}
    assert {"good", "lost", "evil", "same", "none"} == set(found)
    assert "already taken" in found["good"]
    assert "is not there" in found["lost"]
    assert "is not there" in found["evil"]
    assert "duplicate choices" in found["same"]
    assert "no other answer" in found["none"]
    assert 5 == sum(read_manifest(tmp_path / "o")["left_out"]["table"].values())


def test_choices_that_speak_of_each_other_keep_their_order(tmp_path: Path) -> None:
    """A choice of all of the above stays last; other rows are shuffled by the seed."""
    choices = ["x", "y", "z", "All of the above"]
    rows = [GOOD | {"id": f"{i}", "choices": choices} for i in range(9)]
    rows += [GOOD | {"id": f"s{i}", "choices": ["x", "y", "z", "w"]} for i in range(9)]
    source = table(tmp_path / "s", rows)
    assert 0 == build(tmp_path / "o", "--source", source, "--heldout-share", "0")
    orders = defaultdict(set)
    for question in read_split(tmp_path / "o"):
        orders[question.id[0] == "s"].add(question.choices)
    assert {tuple(choices)} == orders[False]
    assert len(orders[True]) > 3


def test_the_manifest_says_where_data_come_from(folders: dict[str, Path], tmp_path: Path) -> None:
    """Revision and licence are taken over from what `data fetch` wrote."""
    folder = tmp_path / "c"
    shutil.copytree(folders["countingqa"], folder)
    fetched = {"name": "countingqa", "revision": "abc", "licence": "other", "repository": "n/A"}
    (folder / "manifest.json").write_text(json.dumps(fetched))
    assert 0 == build(tmp_path / "o", "--source", f"countingqa={folder}")
    assert fetched == read_manifest(tmp_path / "o")["sources"][0]["fetched"]
