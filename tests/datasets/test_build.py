"""Tests of `data build` from files on disk to questions that `ingest` takes."""

import csv
import json
import os
import random
import shutil
import subprocess
import wave
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from mmar_jobs.cli import run_command
from mmar_jobs.datasets.mmar import parse_questions
from mmar_jobs.errors import ExitCode
from mmar_jobs.records import Question, canonical
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import Fails

REAL_ROWS = Path(__file__).parents[3] / "shared" / "data" / "mmar-head.jsonl"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_clip(path: Path, seed: int) -> Path:
    """A clip of its own for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(os.fspath(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(random.Random(seed).randbytes(3200))
    return path


def build(output: Path, *arguments: str) -> int:
    """Run the command, in this process unless --jobs says otherwise."""
    return run_command("data", ["build", str(output), "--jobs", "1", *arguments])


def read_split(output: Path, name: str = "train") -> list[Question]:
    """A split, as ingest parses it."""
    path = output / f"{name}.jsonl"
    rows = list(parse_questions(path.read_bytes().splitlines(), "x")) if path.exists() else []
    assert all(isinstance(row, Question) for row in rows), rows
    return [row for row in rows if isinstance(row, Question)]


def read_manifest(output: Path) -> Any:
    """What the build says of itself."""
    return json.loads((output / "manifest.json").read_text())


def left_out(output: Path) -> list[dict[str, str]]:
    """The rows left out."""
    return [json.loads(line) for line in (output / "left_out.jsonl").read_text().splitlines()]


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_counting(folder: Path, num_clips: int, *, per_clip: int = 2) -> Path:
    """A CountingQA folder; each clip has some questions, answers are skewed."""
    rows = []
    dice = np.random.default_rng(5)
    for i in range(num_clips):
        sound = f"concat_{i}.wav"
        write_clip(folder / "counting_audios" / sound, i)
        for j in range(per_clip):
            count = WORDS[1 + min(8, int(dice.geometric(0.28)))]
            turns = [
                {"from": "human", "value": f"<sound>\nHow many times does event {j} occur?"},
                {"from": "gpt", "value": f"It occurs {count} times in this audio."},
            ]
            rows.append({"id": f"{i}", "sound": sound, "duration": 0.1, "conversations": turns})
    (folder / "CountingQA.json").write_text(json.dumps(rows))
    return folder


def write_music(folder: Path, num_videos: int) -> Path:
    """A MusicBench folder: each video with an original and an augmented clip."""
    rows = []
    for i in range(num_videos):
        for j, location in enumerate((f"data/video{i:06d}.wav", f"data_aug2/video{i:06d}_1.wav")):
            write_clip(folder / "datashare" / location, 10_000 + 2 * i + j)
            key = ["CDEFGAB"[i % 7], ("major", "minor")[i % 2]]
            caption = f"A {('rock', 'jazz')[i % 2]} song, number {i}. " + "More. " * (i % 9)
            rows.append(
                {"location": location, "main_caption": caption, "bpm": 60 + 7 * (i % 15)}
                | {"key": key, "keyprob": [0.9]}
            )
    path = folder / "MusicBench_train.json"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def write_tacos(folder: Path, num_recordings: int) -> Path:
    """A TACOS folder: two clear events a recording, two subclasses."""
    rows: list[tuple[object, ...]] = [("filename", "text", "onset", "offset")]
    meta: list[tuple[object, ...]] = [("filename", "freesound_id", "superclass", "subclass")]
    for i in range(num_recordings):
        name = f"{i}.wav"
        write_clip(folder / "audio" / name, 50_000 + i)
        rows.append((name, f"Event {i} begins.", 0.0, 1.0))
        rows.append((name, f"Event {i} ends.", 2.0, 3.0))
        meta.append((name, i // 2, "Nature", f"Sub {i % 2}"))
    for file, lines in (("annotations_strong.csv", rows), ("metadata.csv", meta)):
        with (folder / file).open("w", newline="") as opened:
            csv.writer(opened).writerows(lines)
    return folder


def table(folder: Path, rows: Iterable[dict[str, object]]) -> str:
    """A table source with a clip `a.wav`."""
    write_clip(folder / "a.wav", 1)
    path = folder / "questions.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return f"table={folder}"


GOOD: dict[str, object] = {"audio": "a.wav", "text": "?", "choices": ["x", "y"], "answer": "x"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each data set; read only."""
    base = tmp_path_factory.mktemp("sources")
    return {
        "countingqa": write_counting(base / "c", 60),
        "musicbench": write_music(base / "m", 40),
        "tacos": write_tacos(base / "t", 40),
    }


def sources(folders: dict[str, Path], ratio: str = "") -> list[str]:
    """The flags for all of them."""
    return [
        flag for kind, folder in folders.items() for flag in ("--source", f"{kind}={folder}{ratio}")
    ]


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


def sides(output: Path) -> tuple[list[Question], list[Question]]:
    """Training and held-out questions."""
    return read_split(output), read_split(output, "heldout")


def assert_apart(output: Path) -> None:
    """No file, name or source is in both splits."""
    found = []
    for questions in sides(output):
        audio = {(output / question.audio).read_bytes() for question in questions}
        names = {question.audio for question in questions}
        found.append(audio | names | {s for q in questions for s in q.source_ids})
    assert set() == found[0] & found[1]


def test_no_sound_is_in_both_splits(folders: dict[str, Path], tmp_path: Path) -> None:
    """Neither a clip, nor an augmented copy of one, nor another cut of one recording."""
    assert 0 == build(tmp_path / "o", *sources(folders), "--heldout-share", "0.3")
    assert_apart(tmp_path / "o")
    by_side = [{s for q in side for s in q.source_ids} for side in sides(tmp_path / "o")]
    assert all(len(found) > 5 for found in by_side)


def test_copies_under_other_names_are_one_sound(tmp_path: Path) -> None:
    """The same bytes twice are together, whatever their names."""
    rows = []
    for i in range(40):
        write_clip(tmp_path / "s" / f"{i}.wav", i // 2)
        rows.append({"id": f"{i}", "audio": f"{i}.wav", "text": "?"} | {"answer": f"w{i % 5}"})
    (tmp_path / "s/questions.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    flags = ("--source", f"table={tmp_path / 's'}", "--heldout-share", "0.4")
    assert 0 == build(tmp_path / "o", *flags)
    assert_apart(tmp_path / "o")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_near_copies_are_one_sound(tmp_path: Path) -> None:
    """A sentence, and the same re-encoded to mp3 at 32 kbit/s and cut: never on two sides."""
    folder, rows = tmp_path / "s", []
    folder.mkdir()
    for i in range(8):
        words = " ".join(WORDS[(i * 3 + j * j) % 10] for j in range(9))
        subprocess.run(["espeak-ng", "-w", str(folder / f"{i}-a.wav"), words], check=True)
        cut = ["-ss", "0.3", "-ar", "44100", "-b:a", "32k", str(folder / f"{i}-b.mp3")]
        source = str(folder / f"{i}-a.wav")
        subprocess.run(["ffmpeg", "-v", "error", "-i", source, *cut], check=True)
        rows += [GOOD | {"id": name, "audio": name} for name in (f"{i}-a.wav", f"{i}-b.mp3")]
    table(folder, rows)
    flags = ("--source", f"table={folder}", "--heldout-share", "0.5")
    assert 0 == build(tmp_path / "o", *flags)
    found = [{q.id[0] for q in side} for side in sides(tmp_path / "o")]
    assert set() == found[0] & found[1]
    assert [4, 4] == [len(side) for side in found]
    assert 0 == build(tmp_path / "p", *flags, "--ignore-copies", "--seed", "3")
    found = [{q.id[0] for q in side} for side in sides(tmp_path / "p")]
    assert found[0] & found[1]


def test_clips_that_cannot_be_used_do_not_spoil_the_mix(tmp_path: Path) -> None:
    """Broken and long clips are listed, and the ratio holds for what is left."""
    for name, num_good in (("a", 30), ("b", 10)):
        rows = []
        for i in range(num_good + 3):
            clip = write_clip(tmp_path / name / f"{i}.wav", i + 100 * num_good)
            rows.append(GOOD | {"id": f"{name}{i}", "audio": clip.name})
        table(tmp_path / name, rows)
        (tmp_path / name / "0.wav").write_bytes(b"no sound")
        (tmp_path / name / "1.wav").write_bytes(b"")
        with wave.open(os.fspath(tmp_path / name / "2.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(bytes(2 * 16_000 * 4))
    flags = ["--source", f"table={tmp_path / 'a'}:2", "--source", f"table={tmp_path / 'b'}:1"]
    assert 0 == build(tmp_path / "o", *flags, "--max-clip-s", "3", "--heldout-share", "0.2")
    found = Counter(q.id[0] for side in sides(tmp_path / "o") for q in side)
    assert {"a": 21, "b": 10} == dict(found)  # 2 : 1 of 31, rounded
    entries = {entry["row"]: entry["reason"] for entry in left_out(tmp_path / "o")}
    assert {"b0", "b1", "b2"} <= set(entries) <= {f"{n}{i}" for n in "ab" for i in range(3)}
    assert "cannot be decoded" in entries["b0"]
    assert "more than the limit of 3 s" in entries["b2"]
    assert not any(str(tmp_path)[1:] in reason for reason in entries.values())


@settings(max_examples=4, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 999), st.floats(0.05, 0.6), st.integers(2, 5))
def test_the_laws_hold_for_any_seed_and_share(
    folders: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    share: float,
    num_choices: int,
) -> None:
    """Apart, valid, and every category of every data set near its share."""
    output = tmp_path_factory.mktemp("law") / "out"
    flags = ("--seed", str(seed), "--heldout-share", str(share), "--num-choices", str(num_choices))
    assert 0 == build(output, *sources(folders), *flags)
    assert_apart(output)
    train, heldout = sides(output)
    everything = Counter((q.dataset, q.category) for q in (*train, *heldout))
    held = Counter((q.dataset, q.category) for q in heldout)
    for category, count in everything.items():
        assert abs(held[category] - share * count) <= 4, category
    assert all(len(question.choices) <= max(4, num_choices) for question in (*train, *heldout))
    shutil.rmtree(output)


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


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_spoken_clips_become_counting_questions(tmp_path: Path, world: TinyWorld) -> None:
    """Real speech: words said one to eight times, through build and ingest."""
    folder, rows = tmp_path / "speech", []
    folder.mkdir()
    for i, word in enumerate(("bell", "dog", "rain")):
        for count in range(1, 9):
            name = f"concat_{word}_{count}.wav"
            text = ". ".join([word] * count)
            subprocess.run(["espeak-ng", "-w", str(folder / name), text], check=True)
            asked = f"<sound>\nHow many times is the word {word} said?"
            said = f"It is said {WORDS[count]} {'time' if count == 1 else 'times'}."
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
            rows.append({"id": f"{i}-{count}", "sound": name, "conversations": turns})
    (folder / "CountingQA.json").write_text(json.dumps(rows))
    output = tmp_path / "out"
    assert 0 == build(output, "--source", f"countingqa={folder}", "--heldout-share", "0.25")
    assert (18, 6) == tuple(len(side) for side in sides(output))
    for question in (q for side in sides(output) for q in side):
        count = question.audio.rpartition("_")[2].removesuffix(".wav")
        assert count == question.answer
    arguments = ["--store", str(tmp_path / "store"), "--run-id", "r", "--strict"]
    arguments += ["--questions", str(output / "train.jsonl")]
    arguments += ["--heldout", str(output / "heldout.jsonl"), "--benchmark", str(world.benchmark)]
    assert 0 == run_command("ingest", arguments)


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


@pytest.mark.parametrize(
    ("code", "arguments", "says"),
    [
        (2, (), "--source"),
        (2, ("--source", "nonsense"), "needs KIND=PATH"),
        (2, ("--source", "magic=x"), "KIND one of"),
        (2, ("--source", "table=missing"), "there is no missing"),
        (2, ("--source", "table=SOURCE:no"), "'no' is no ratio"),
        (2, ("--source", "table=SOURCE:0"), "must be positive"),
        (2, ("--source", "table=SOURCE:1/0"), "is no ratio"),
        (2, ("--source", "table=SOURCE", "--heldout-share", "1"), "below 1"),
        (2, ("--source", "table=SOURCE", "--heldout-share", "nan"), "below 1"),
        (2, ("--source", "table=SOURCE", "--num-choices", "1"), "from 2 to 26"),
        (2, ("--source", "table=SOURCE", "--jobs", "0"), "at least 1"),
        (2, ("--source", "table=SOURCE", "--max-clip-s", "nan"), "must be positive"),
        (2, ("--source", "table=SOURCE", "--total", "99"), "lower --total"),
        (2, ("--source", "table=SOURCE:1", "--source", "table=SOURCE"), "give all or none"),
        (3, ("--source", "table=SOURCE"), "split is empty"),
        (3, ("--source", "countingqa=SOURCE"), "has no CountingQA"),
        (3, ("--source", "table=EMPTY"), "gave no question"),
    ],
)
def test_wrong_settings_and_data_are_one_line(
    code: int,
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the output folder is not there, not even half."""
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "SOURCE", [GOOD | {"id": "1"}])
    table(tmp_path / "EMPTY", [])
    assert says in fails(ExitCode(code), "data", "build", "out", "--jobs", "1", *arguments)
    assert {"SOURCE", "EMPTY"} == {path.name for path in tmp_path.iterdir()}


def test_a_finished_build_is_not_written_over(tmp_path: Path, fails: Fails) -> None:
    """An empty folder is taken, one that holds anything is refused."""
    source = table(tmp_path / "s", [GOOD | {"id": "1"}])
    output = tmp_path / "o"
    output.mkdir()
    flags = ("--source", source, "--heldout-share", "0")
    assert 0 == build(output, *flags)
    before = all_bytes(output)
    assert "already there" in fails(ExitCode.SETTINGS, "data", "build", str(output), *flags)
    assert before == all_bytes(output)


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    """Only what no path explains is a ratio."""
    source = table(tmp_path / "s:2", [GOOD | {"id": "1"}])
    assert 0 == build(tmp_path / "o", "--source", source, "--heldout-share", "0")
    assert read_manifest(tmp_path / "o")["sources"][0]["ratio"] is None
    assert 0 == build(tmp_path / "p", "--source", f"{source}:3", "--heldout-share", "0")
    assert "3" == read_manifest(tmp_path / "p")["sources"][0]["ratio"]


def test_an_unwritable_place_is_a_setting(tmp_path: Path, fails: Fails) -> None:
    """One line, exit 2."""
    source = table(tmp_path / "s", [GOOD | {"id": "1"}])
    (tmp_path / "file").write_text("")
    target = os.fspath(tmp_path / "file" / "out")
    line = fails(
        ExitCode.SETTINGS, "data", "build", target, "--source", source, "--heldout-share", "0"
    )
    assert "file" in line
