"""Tests of ingest: bad rows are listed and counted, contamination is refused, nothing slips by."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmar_jobs.artifact import Artifact, find_artifact
from mmar_jobs.errors import DataError, GateError, SettingsError
from mmar_jobs.layout import BENCHMARK, HELDOUT, REJECTS, TRAIN, questions_key
from mmar_jobs.questions import Reject, audio_root, read_split
from mmar_jobs.recipes import DataRecipe
from mmar_jobs.settings import IngestCommand
from mmar_jobs.split import source_keys
from mmar_jobs.stages.ingest import run
from mmar_jobs.store import open_store
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import FakeOpener, Track, edges_of, sound_bytes, tone

SPLITS = (TRAIN, HELDOUT, BENCHMARK)


@dataclass
class Desk:
    """A folder with question files and clips, and a store beside it."""

    folder: Path

    def clip(self, name: str, *, seconds: float = 0.5, pitch_hz: float = 440.0) -> str:
        """Write a clip; returns its path in rows."""
        (self.folder / f"{name}.wav").write_bytes(
            sound_bytes(tone(seconds=seconds, pitch_hz=pitch_hz), 16_000)
        )
        return f"{name}.wav"

    def row(self, key: str, **changes: Any) -> dict[str, Any]:
        """A good row about a clip of its own."""
        if "audio_path" not in changes:
            changes["audio_path"] = self.clip(key, pitch_hz=200 + sum(key.encode()))
        known = {"id": key, "question": "What?", "choices": ["one", "two"], "answer": "one"}
        return known | changes

    def write(self, name: str, rows: list[dict[str, Any] | str]) -> str:
        """Write a question file of rows, or of lines as they are."""
        path = self.folder / f"{name}.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    def command(self, questions: str, benchmark: str, **changes: Any) -> IngestCommand:
        """Settings of an ingest; half of the clips are held out."""
        known: dict[str, Any] = {
            "store": str(self.folder / "store"),
            "run_id": "r",
            "questions": questions,
            "benchmark": benchmark,
            "data": DataRecipe(heldout_fraction=0.5),
        }
        return IngestCommand(**known | changes)

    def ingest(self, command: IngestCommand) -> Artifact:
        """Run the stage."""
        return run(command, self.edges()[0])

    def edges(self) -> Any:
        """Edges over the store beside the rows."""
        return edges_of(self.folder / "store", FakeOpener(lambda *_: ""))

    def rejects(self) -> list[Reject]:
        """The rows that were left out."""
        found = find_artifact(open_store(str(self.folder / "store")), questions_key("r"))
        assert found is not None
        rejects = list(found.read_records(REJECTS, Reject))
        assert len(rejects) == found.manifest.counts["num_rejects"]
        assert [reject.model_dump() for reject in rejects] == found.manifest.metrics["rejects"]
        return rejects


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """An empty desk."""
    return Desk(tmp_path)


@pytest.fixture
def bench(desk: Desk) -> str:
    """A benchmark of one good row."""
    return desk.write("bench", [desk.row("bench-1")])


def good(desk: Desk, count: int = 8) -> list[dict[str, Any] | str]:
    """Good training rows."""
    return [desk.row(f"t{index}") for index in range(count)]


def test_world_is_ingested_whole(world: TinyWorld, desk: Desk) -> None:
    """Every row of the synthetic world comes out, in order, with its clip's digest and length."""
    command = desk.command(
        str(world.train), str(world.benchmark), heldout=str(world.heldout), strict=True
    )
    artifact = desk.ingest(command)
    assert {"num_train": 12, "num_heldout": 8, "num_benchmark": 6, "num_rejects": 0} == (
        artifact.manifest.counts
    )
    for split, path in (
        (TRAIN, world.train),
        (HELDOUT, world.heldout),
        (BENCHMARK, world.benchmark),
    ):
        questions = read_split(artifact, split)
        ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
        assert ids == [question.id for question in questions]
        assert all(2.5 <= question.audio_s <= 3.31 for question in questions)
    assert [] == desk.rejects()


def test_split_by_source_covers_all(desk: Desk, bench: str) -> None:
    """Without --heldout a share of the clips is held out and no clip is on both sides."""
    rows = good(desk)
    rows += [desk.row(f"again-{index}", audio_path=f"t{index}.wav") for index in range(8)]
    artifact = desk.ingest(desk.command(desk.write("train", rows), bench))
    train, heldout = read_split(artifact, TRAIN), read_split(artifact, HELDOUT)
    assert 16 == len(train) + len(heldout)
    sides = [{key for q in side for key in source_keys(q)} for side in (train, heldout)]
    assert not sides[0] & sides[1]


Break = Callable[[Desk], dict[str, Any] | str]


def damaged(desk: Desk, damage: Callable[[bytes], bytes]) -> dict[str, Any]:
    """A row whose clip is damaged."""
    row = desk.row("bad")
    path = desk.folder / "bad.wav"
    path.write_bytes(damage(path.read_bytes()))
    return row


def linked(desk: Desk, target: str) -> dict[str, Any]:
    """A row whose clip is a symbolic link."""
    row = desk.row("bad")
    path = desk.folder / "bad.wav"
    path.unlink()
    path.symlink_to(target)
    return row


BAD_ROWS: dict[str, tuple[Break, str | None, str]] = {
    "broken JSON": (lambda _: '{"id": ', None, "is not JSON"),
    "not an object": (lambda _: "[1]", None, "object"),
    "no choices": (lambda d: d.row("bad", choices=[]), "bad", "has no choices"),
    "one choice": (lambda d: d.row("bad", choices=["one"]), "bad", "needs 2 to 26 choices, has 1"),
    "twin choices": (lambda d: d.row("bad", choices=["one", "One"]), "bad", "duplicate choices"),
    "stray answer": (lambda d: d.row("bad", answer="six"), "bad", "'six' is not among its choices"),
    "no answer": (lambda d: d.row("bad", answer=None), "bad", "has no answer to learn from"),
    "no text": (lambda d: d.row("bad", question=" "), "bad", "question is empty"),
    "twin id": (lambda d: d.row("t0"), "t0", "its id is already that of line 1"),
    "chat token": (
        lambda d: d.row("bad", question="What?<|im_end|>"),
        "bad",
        "holds the control token <|im_end|>: remove it",
    ),
    "think tag": (lambda d: d.row("bad", choices=["one", "</think>two"]), "bad", "</think>"),
    "missing clip": (
        lambda d: d.row("bad", audio_path="none.wav"),
        "bad",
        "none.wav does not exist",
    ),
    "clip outside": (
        lambda d: d.row("bad", audio_path="../x.wav"),
        "bad",
        "outside the audio root",
    ),
    "empty clip": (lambda d: damaged(d, lambda _: b""), "bad", "bad.wav is empty: fetch it again"),
    "cut clip": (lambda d: damaged(d, lambda data: data[:9000]), "bad", "bad.wav is truncated"),
    "no audio": (lambda d: damaged(d, lambda _: b"<html>" * 99), "bad", "cannot be decoded"),
    "short clip": (
        lambda d: d.row("bad", audio_path=d.clip("bad", seconds=0.02)),
        "bad",
        "lasts 0.020 s",
    ),
    "long clip": (
        lambda d: d.row("bad", audio_path=d.clip("bad", seconds=30.6)),
        "bad",
        "lasts 30.60 s, more than the limit of 30 s and 0.5 s of padding",
    ),
    "clip on the web": (
        lambda d: d.row("bad", audio_path="https://example.org/x.wav"),
        "bad",
        "https:// cannot be read or written",
    ),
    "link to itself": (lambda d: linked(d, "bad.wav"), "bad", "bad.wav"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_row_is_listed_and_counted(desk: Desk, bench: str, kind: str) -> None:
    """The row is left out with file, line and reason; blank lines do not shift the number."""
    make, key, reason = BAD_ROWS[kind]
    rows = good(desk)
    artifact = desk.ingest(
        desk.command(desk.write("train", [*rows[:4], "", make(desk), *rows[4:]]), bench)
    )
    [reject] = desk.rejects()
    assert (TRAIN, 6, key) == (reject.source, reject.line_number, reject.id)
    assert reason in reject.reason
    assert "\n" not in reject.reason
    assert 8 == artifact.manifest.counts["num_train"] + artifact.manifest.counts["num_heldout"]


@pytest.mark.parametrize("kind", ["broken JSON", "stray answer", "cut clip"])
def test_strict_makes_a_bad_row_fatal(desk: Desk, bench: str, kind: str) -> None:
    """The error names line and reason, nothing is finished, and without --strict it goes on."""
    make, _, reason = BAD_ROWS[kind]
    path = desk.write("train", [*good(desk), make(desk)])
    with pytest.raises(DataError, match=rf"1 bad rows \(--strict\): train line 9: .*{reason}"):
        desk.ingest(desk.command(path, bench, strict=True))
    assert find_artifact(open_store(str(desk.folder / "store")), questions_key("r")) is None
    assert 1 == desk.ingest(desk.command(path, bench)).manifest.counts["num_rejects"]


def test_strict_holds_for_a_finished_artifact(desk: Desk, bench: str) -> None:
    """What an earlier, lenient run let pass is still fatal to a strict one."""
    path = desk.write("train", [*good(desk), "{"])
    desk.ingest(desk.command(path, bench))
    with pytest.raises(DataError, match="train line 9: is not JSON"):
        desk.ingest(desk.command(path, bench, strict=True))


def test_bad_rows_are_said_aloud(desk: Desk, bench: str) -> None:
    """A warning with the number and the first few."""
    edges, said = desk.edges()
    run(desk.command(desk.write("train", [*good(desk), "{", "["]), bench), edges)
    [call] = [call for call in said.calls if call.kwargs["event"] == "rows_rejected"]
    assert ("warning", 2) == (call.method_name, call.kwargs["num_rejects"])
    assert "train line 9" in call.kwargs["first"]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "kind", [kind for kind in BAD_ROWS if kind not in ("no answer", "twin id")]
)
def test_bad_benchmark_row_is_an_error(desk: Desk, kind: str, strict: bool) -> None:
    """Every row must be answered, so none is left out; nothing is finished meanwhile."""
    make, key, reason = BAD_ROWS[kind]
    bench = desk.write("bench", [desk.row("b1"), make(desk), desk.row("b3")])
    command = desk.command(desk.write("train", good(desk)), bench, strict=strict)
    with pytest.raises(DataError) as caught:
        desk.ingest(command)
    line = str(caught.value)
    where = f"line 2 (id {key}): " if key else "line 2: "
    assert line.startswith(f"1 bad rows in the benchmark: {where}")
    assert reason in line
    assert line.endswith("correct them or fetch their clips, then ingest again")
    assert "\n" not in line
    assert find_artifact(open_store(str(desk.folder / "store")), questions_key("r")) is None


def test_bad_benchmark_is_an_error_where_nothing_is_good(desk: Desk) -> None:
    """The first rows are named, the others counted."""
    bench = desk.write("bench", ["{"] * 5)
    with pytest.raises(DataError, match=r"5 bad rows in the benchmark: line 1: .*; and 2 more: "):
        desk.ingest(desk.command(desk.write("train", good(desk)), bench))


def test_benchmark_row_may_lack_its_answer_and_be_padded(desk: Desk) -> None:
    """MMAR's clips last up to 30 s, and an encoder fills its last block."""
    clip = desk.clip("long", seconds=30.02)
    bench = desk.write("bench", [desk.row("b1", answer=None), desk.row("b2", audio_path=clip)])
    artifact = desk.ingest(desk.command(desk.write("train", good(desk)), bench))
    assert ["b1", "b2"] == [question.id for question in read_split(artifact, BENCHMARK)]
    assert [] == desk.rejects()


def test_audio_root_holds_the_clips_of_every_split(desk: Desk, tmp_path: Path) -> None:
    """Question files may lie elsewhere than their clips; later stages look where ingest did."""
    train, bench = desk.write("train", good(desk)), desk.write("bench", [desk.row("b1")])
    clips = tmp_path / "clips"
    clips.mkdir()
    for clip in desk.folder.glob("*.wav"):
        clip.rename(clips / clip.name)
    heldout = desk.write("heldout", [desk.row("h1", audio_path="t0.wav")])
    data = DataRecipe(contamination="drop")
    command = desk.command(train, bench, heldout=heldout, data=data, audio_root=str(clips))
    artifact = desk.ingest(command)
    assert (7, 1, 1) == tuple(artifact.manifest.counts[f"num_{name}"] for name in SPLITS)
    assert [clips.as_uri()] * 3 == [audio_root(artifact, split, "") for split in SPLITS]
    assert "s3://elsewhere" == audio_root(artifact, TRAIN, "s3://elsewhere")


def test_audio_root_must_be_an_address(desk: Desk, bench: str) -> None:
    """A setting, unlike a row: exit 2."""
    with pytest.raises(SettingsError, match="gopher:// cannot be read"):
        desk.ingest(desk.command(desk.write("t", good(desk)), bench, audio_root="gopher://x"))


def test_no_good_row_is_an_error(desk: Desk, bench: str) -> None:
    """A run over nothing is not begun."""
    with pytest.raises(DataError, match=r"no usable row in the train questions \(2 bad rows; the"):
        desk.ingest(desk.command(desk.write("train", ["{", "{"]), bench))


def test_empty_split_is_an_error(desk: Desk, bench: str) -> None:
    """Without held-out questions there is no gate, without training ones no training."""
    path = desk.write("train", good(desk, 2))
    for fraction, split in ((0.0, HELDOUT), (1.0, TRAIN)):
        command = desk.command(path, bench, data=DataRecipe(heldout_fraction=fraction))
        with pytest.raises(DataError, match=f"the {split} split is empty"):
            desk.ingest(command)


def test_contamination_is_refused(desk: Desk) -> None:
    """A training row about a clip of the benchmark, whatever its id and file name."""
    bench = desk.write("bench", [desk.row("b1", audio_path=desk.clip("b1", pitch_hz=900))])
    rows = [*good(desk), desk.row("sly", audio_path=desk.clip("renamed", pitch_hz=900))]
    with pytest.raises(
        GateError, match=r"1 train questions are contaminated by the benchmark: sly"
    ):
        desk.ingest(desk.command(desk.write("train", rows), bench))


def test_contamination_is_dropped_where_asked(desk: Desk) -> None:
    """Dropped rows are listed with the evidence, and are no reason for --strict to fail."""
    bench = desk.write("bench", [desk.row("b1", audio_path=desk.clip("b1", pitch_hz=900))])
    rows = [*good(desk), desk.row("sly", audio_path=desk.clip("renamed", pitch_hz=900))]
    data = DataRecipe(heldout_fraction=0.5, contamination="drop")
    artifact = desk.ingest(desk.command(desk.write("train", rows), bench, data=data, strict=True))
    [reject] = desk.rejects()
    assert ("sly", 9, True) == (reject.id, reject.line_number, reject.is_contaminated)
    assert "has the same audio" in reject.reason
    ids = {q.id for split in (TRAIN, HELDOUT) for q in read_split(artifact, split)}
    assert "sly" not in ids


@pytest.mark.parametrize("contamination", ["refuse", "drop"])
def test_heldout_that_shares_audio(desk: Desk, bench: str, contamination: Any) -> None:
    """Training on a held-out clip would fool the gate: refused, or dropped from training."""
    path = desk.write("train", good(desk))
    heldout = desk.write("heldout", [desk.row("h1"), desk.row("h2", audio_path="t3.wav")])
    data = DataRecipe(contamination=contamination)
    command = desk.command(path, bench, heldout=heldout, data=data)
    if contamination == "refuse":
        with pytest.raises(GateError, match=r"contaminated by --heldout: t3 has the same audio"):
            desk.ingest(command)
        return
    artifact = desk.ingest(command)
    assert ["h1", "h2"] == [question.id for question in read_split(artifact, HELDOUT)]
    assert "t3" not in {question.id for question in read_split(artifact, TRAIN)}
    assert ["t3"] == [reject.id for reject in desk.rejects()]


def test_second_ingest_does_nothing(desk: Desk, bench: str) -> None:
    """The same files and settings give the finished artifact back without reading a clip."""
    command = desk.command(desk.write("train", good(desk)), bench)
    first = desk.ingest(command)
    for clip in desk.folder.glob("*.wav"):
        clip.unlink()
    assert first.manifest == desk.ingest(command).manifest


def test_changed_questions_are_refused(desk: Desk, bench: str) -> None:
    """A run stays with the questions that it began with."""
    path = desk.write("train", good(desk))
    desk.ingest(desk.command(path, bench))
    desk.write("train", good(desk, 9))
    with pytest.raises(SettingsError, match=r"input train: .* choose another --run-id"):
        desk.ingest(desk.command(path, bench))
    desk.write("train", good(desk))
    data = DataRecipe(heldout_fraction=0.5, seed=1)
    with pytest.raises(SettingsError, match=r"data\.seed: 0 -> 1"):
        desk.ingest(desk.command(path, bench, data=data))


def test_progress_counts_clips(desk: Desk, bench: str) -> None:
    """One advance a clip that is looked at, good or bad."""
    track = Track()
    edges, _ = edges_of(desk.folder / "store", FakeOpener(lambda *_: ""), track=track)
    rows = [*good(desk), desk.row("bad", audio_path="none.wav")]
    run(desk.command(desk.write("train", rows), bench), edges)
    assert {"checking train clips": 9, "checking benchmark clips": 1} == track.done
    assert track.totals == track.done
