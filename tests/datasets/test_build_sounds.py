"""Tests of `data build` and its clips: no sound on two sides, none that cannot be heard."""

import json
import os
import shutil
import subprocess
import wave
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmar_jobs.cli import run_command
from mmar_jobs.tiny.build import TinyWorld
from tests.datasets.build_cases import (
    GOOD,
    WORDS,
    assert_apart,
    build,
    left_out,
    sides,
    sources,
    table,
    write_clip,
)


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
