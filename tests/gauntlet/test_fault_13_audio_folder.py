"""Fault 13: the folder of a clip was guessed from its file name; wrong guesses passed unnoticed.

Also: MusicBench clips begin at start_s of a recording, and were cut from its beginning.
"""

import json
from pathlib import Path

from mmar_jobs.datasets.mmar import BadRow, parse_questions
from mmar_jobs.errors import ExitCode
from mmar_jobs.records import Question
from tests.gauntlet.conftest import HealthyRun
from tests.gauntlet.planted import Run, read_rows, write_rows


def test_13_a_missing_clip_names_the_path(new_run: Run, tmp_path: Path) -> None:
    """The earlier attempt tried folders whose names resembled the file's; this looks in one."""
    rows = read_rows(new_run.world.train)
    questions = write_rows(tmp_path / "train.jsonl", rows)
    stop = new_run.cli("ingest", "--questions", str(questions))
    looked_at = tmp_path / Path(rows[0]["audio_path"]).as_posix()
    stop.says(ExitCode.DATA, "no usable row", "12 bad rows", str(looked_at), "does not exist")


def test_13_one_missing_clip_is_counted_or_fatal(new_run: Run, tmp_path: Path) -> None:
    """One bad row is left out and listed with its line; --strict makes it an error."""
    rows = read_rows(new_run.world.train)
    for row in rows:
        row["audio_path"] = str((new_run.world.folder / row["audio_path"]).as_uri())
    rows[4]["audio_path"] = "./audio/tiny-train-nowhere.wav"
    questions = str(write_rows(tmp_path / "train.jsonl", rows))
    stop = new_run.cli("ingest", "--questions", questions, "--strict")
    stop.says(ExitCode.DATA, "1 bad rows (--strict)", "train line 5", "tiny-train-nowhere.wav")
    assert ExitCode.DONE == new_run.cli("ingest", "--questions", questions).code
    manifest = new_run.artifact("questions").manifest
    assert (11, 1) == (manifest.counts["num_train"], manifest.counts["num_rejects"])
    assert "tiny-train-nowhere.wav" in str(manifest.metrics["rejects"])


def test_13_a_clip_in_a_neighbouring_folder_is_not_found(new_run: Run, tmp_path: Path) -> None:
    """A training row says its folder; a file of that name elsewhere is another file."""
    row = read_rows(new_run.world.train)[0]
    name = Path(row["audio_path"]).name
    (tmp_path / "musicbench").mkdir()
    (tmp_path / "musicbench" / name).write_bytes(
        (new_run.world.folder / row["audio_path"]).read_bytes()
    )
    listed = "\n".join(["How many?", "Choices:", *row["choices"]])
    seed_row = {"id": "s1", "sound": name, "audio_dir": "tacos", "question": listed} | {
        "answer": row["answer"]
    }
    questions = write_rows(tmp_path / "train.jsonl", [seed_row])
    stop = new_run.cli("ingest", "--questions", str(questions))
    stop.says(ExitCode.DATA, str(tmp_path / "tacos" / name), "does not exist")


def test_13_a_wrong_audio_root_stops_later_stages(run_after: HealthyRun, tmp_path: Path) -> None:
    """Where clips lie on this machine is said, not searched for."""
    stop = run_after("ingest").cli("generate", "--audio-root", str(tmp_path))
    stop.says(ExitCode.DATA, str(tmp_path / "audio"), "does not exist")


def test_13_a_clip_that_starts_later_is_not_read_from_zero() -> None:
    """A row that points into a recording is refused: the file would be heard from its beginning."""
    row = {
        "id": "mb1",
        "sound": "long.wav",
        "audio_dir": "musicbench",
        "question": "Which?\nChoices:\nflute\ndrum",
        "answer": "drum",
    }
    lines = [json.dumps(row | {"start_s": start_s, "id": f"mb{start_s}"}) for start_s in (0, 12.5)]
    whole, cut = parse_questions(lines, "musicbench")
    assert isinstance(whole, Question)
    assert isinstance(cut, BadRow)
    assert "starts at 12.5 s" in cut.reason
    assert "cut it out first" in cut.reason
