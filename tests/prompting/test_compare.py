"""Tests of the comparison: paired on equal questions, refused on the benchmark, asked once."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmar_jobs.audio import ClipReader
from mmar_jobs.base_model import model_digest
from mmar_jobs.cli import run_command
from mmar_jobs.engine import Request
from mmar_jobs.errors import DataError, ExitCode, TryAgain
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.prompt import SYSTEM_BY_VERSION
from mmar_jobs.prompting.asking import Lab
from mmar_jobs.prompting.compare import Outcome, compare_variants, count_pairs
from mmar_jobs.prompting.questions import check_allowed
from mmar_jobs.question_file import clips_beside, heard, read_question_file
from mmar_jobs.recipes import EngineSettings, SamplingRecipe
from mmar_jobs.records import Grade, Question
from mmar_jobs.stats import holm, mcnemar
from mmar_jobs.tiny.build import TinyWorld
from tests.fakes import Fails, FakeOpener, Track, edges_of, make_question, sound_bytes, think

GRADES = st.sampled_from([Grade.CORRECT, Grade.WRONG, Grade.UNPARSED, Grade.TRUNCATED])


def outcomes(grades: Sequence[Grade]) -> dict[str, Outcome]:
    """One outcome a question, of growing length."""
    return {f"q{n}": Outcome(grade=grade, num_tokens=n) for n, grade in enumerate(grades)}


@given(st.lists(st.tuples(GRADES, GRADES, GRADES), min_size=1, max_size=40))
def test_comparison_counts_pairs(rows: list[tuple[Grade, Grade, Grade]]) -> None:
    """Won and lost are those of a plain count, gains their difference, p exact and adjusted."""
    first, second, third = map(outcomes, zip(*rows, strict=True))
    found = compare_variants({"v9": first, "v7": second, "v8": third}, reference="v9")
    assert "v9" == found[0].name
    by_name = {row.name: row for row in found}
    for place, name in ((1, "v7"), (2, "v8")):
        row = by_name[name]
        won = sum(r[place] is Grade.CORRECT and r[0] is not Grade.CORRECT for r in rows)
        lost = sum(r[0] is Grade.CORRECT and r[place] is not Grade.CORRECT for r in rows)
        assert (won, lost) == (row.num_won, row.num_lost)
        assert pytest.approx((won - lost) / len(rows)) == row.gain
        assert pytest.approx(row.accuracy - by_name["v9"].accuracy) == row.gain
        assert mcnemar(lost, won) == row.p_value
        assert row.gain_ci95[0] <= row.gain <= row.gain_ci95[1]
        assert sum(r[place] is Grade.UNPARSED for r in rows) == round(
            row.unparsed_share * len(rows)
        )
    adjusted = holm([by_name["v7"].p_value, by_name["v8"].p_value])
    assert adjusted == [by_name["v7"].p_value_holm, by_name["v8"].p_value_holm]


def test_different_questions_are_no_comparison() -> None:
    """Unpaired accuracies are never subtracted."""
    with pytest.raises(ValueError, match="different questions"):
        count_pairs(outcomes([Grade.CORRECT]), outcomes([Grade.CORRECT] * 2))


@pytest.mark.parametrize("dataset", ["MMAR", "MMAR-meta.jsonl", "mmar-head.jsonl", "the mmar set"])
def test_data_set_called_mmar_is_refused(dataset: str) -> None:
    """By its name alone, whatever its ids."""
    with pytest.raises(DataError, match="are the benchmark's, first q1"):
        check_allowed([make_question("q0"), make_question("q1", dataset=dataset)], [], {})


def test_other_data_sets_are_allowed() -> None:
    """A name that only contains the letters is another data set."""
    check_allowed([make_question(dataset="grammar"), make_question("q2", dataset="")], [], {})


@pytest.mark.parametrize(
    "other",
    [
        make_question("q1", audio_sha256="f" * 64),
        make_question("other"),
        make_question("other", audio_sha256="f" * 64, source_ids=("video",)),
    ],
)
def test_question_that_shares_a_source_with_the_benchmark_is_refused(other: Question) -> None:
    """By id, by the file's bytes, by its video."""
    with pytest.raises(DataError, match="benchmark's"):
        check_allowed([make_question("q1", source_ids=("video",))], [other], {})


def test_question_without_an_answer_is_refused() -> None:
    """It could not be graded."""
    with pytest.raises(DataError, match="q1 has no answer"):
        check_allowed([make_question("q1", answer=None)], [], {})


class Bench:
    """A lab over the synthetic world with a scripted engine that knows some prompts' answers."""

    def __init__(self, world: TinyWorld, model: Path, store: Path, track: Track | None = None):
        clips = clips_beside(str(world.heldout), "")
        self.questions = [heard(q, clips)[0] for q in read_question_file(str(world.heldout))]
        by_id = {question.id: question for question in self.questions}

        def script(request: Request, draw: int, identity: ModelIdentity) -> str:
            question = by_id[request.question_id]
            is_good = request.prompt.system == SYSTEM_BY_VERSION["v8"]
            return think(next(c for c in question.choices if (c == question.answer) == is_good))

        self.opener = FakeOpener(script)
        edges, _ = edges_of(store, self.opener, **({"track": track} if track else {}))
        settings = EngineSettings(threads=1)
        self.lab = Lab(
            edges=edges,
            clips=ClipReader(str(world.heldout.parent)),
            identity=ModelIdentity(base_digest=model_digest(model)),
            open_engine=lambda: edges.open_engine(model, None, settings),
            sampling=SamplingRecipe(questions_per_shard=2, max_tokens=32),
            engine=settings,
        )

    @property
    def num_asked(self) -> int:
        """Answers that engines gave."""
        return sum(len(engine.asked) for engine in self.opener.engines)


def test_nothing_is_asked_twice(world: TinyWorld, model_folder: Path, tmp_path: Path) -> None:
    """Answers stay in the store: a second comparison opens no engine and says the same."""
    first = Bench(world, model_folder, tmp_path)
    told = {version: first.lab.ask(version, first.questions) for version in ("v8", "v9")}
    assert 2 * len(first.questions) == first.num_asked
    assert {Grade.CORRECT} == {outcome.grade for outcome in told["v8"].values()}
    assert {Grade.WRONG} == {outcome.grade for outcome in told["v9"].values()}
    second = Bench(world, model_folder, tmp_path)
    assert told == {version: second.lab.ask(version, first.questions) for version in told}
    assert 0 == second.num_asked


def test_killed_comparison_goes_on(world: TinyWorld, model_folder: Path, tmp_path: Path) -> None:
    """Only what has no durable shard is asked again."""
    track = Track(raise_at=5, error=TryAgain("stopped"))
    killed = Bench(world, model_folder, tmp_path, track)
    with pytest.raises(TryAgain):
        killed.lab.ask("v8", killed.questions)
    assert 0 < killed.num_asked < len(killed.questions)
    again = Bench(world, model_folder, tmp_path)
    assert len(killed.questions) == len(again.lab.ask("v8", killed.questions))
    assert again.num_asked <= len(killed.questions) - 2


def test_model_that_is_another_is_not_asked(
    world: TinyWorld, model_folder: Path, other_model_folder: Path, tmp_path: Path
) -> None:
    """Answers are kept by model, so the engine must serve the one that they are kept for."""
    bench = Bench(world, model_folder, tmp_path)
    bench.lab.open_engine = lambda: bench.opener(other_model_folder, None, EngineSettings())
    with pytest.raises(DataError, match="serve the right model"):
        bench.lab.ask("v8", bench.questions)
    assert 0 == bench.num_asked


def flags(world: TinyWorld, model: Path, store: Path) -> list[str]:
    """A comparison over the world with a model of random weights."""
    given = {
        "--store": store,
        "--model": model,
        "--questions": world.heldout,
        "--benchmark": world.benchmark,
        "--sampling.max-tokens": 4,
        "--engine.threads": 1,
    }
    return [str(part) for pair in given.items() for part in pair]


def test_compare_command_prints_json(
    world: TinyWorld, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a real engine; the reference first, a variant from a file by its hash."""
    path = tmp_path / "mine.txt"
    path.write_text("Hear it. Choose.")
    told = flags(world, model_folder, tmp_path / "store")
    told += ["--variants", f"baseline,@{path}", "--json"]
    assert ExitCode.DONE == run_command("prompts", ["compare", *told])
    rows = json.loads(capsys.readouterr().out)["variants"]
    assert {"v9", "baseline"} < {row["name"] for row in rows}
    assert "v9" == rows[0]["name"]
    assert all(row["num_questions"] == 8 for row in rows)
    told[-1] = "--no-json"
    assert ExitCode.DONE == run_command("prompts", ["compare", *told])
    assert "none is measurably better than v9" in capsys.readouterr().out


def test_benchmark_questions_are_refused(
    world: TinyWorld, model_folder: Path, tmp_path: Path, fails: Fails
) -> None:
    """Asked for by mistake, renamed, or without saying what the benchmark is: exit 2 or 3."""
    known = flags(world, model_folder, tmp_path / "store")
    told = [*known, "--questions", str(world.benchmark)]
    assert "are the benchmark's" in fails(ExitCode.DATA, "prompts", "compare", *told)
    told = [*known, "--benchmark", ""]
    assert "needs --benchmark" in fails(ExitCode.SETTINGS, "prompts", "search", *told)
    told = known[:4]
    assert "--run-id or --questions" in fails(ExitCode.SETTINGS, "prompts", "compare", *told)


def melody(seed: int) -> NDArray[np.float32]:
    """Twelve seconds of chords that nobody else plays, (N, 1) at 16 kHz."""
    dice = np.random.default_rng(seed)
    time_N = np.arange(16_000 // 4) / 16_000
    chords = [
        sum(np.sin(2 * np.pi * pitch_hz * time_N) for pitch_hz in dice.uniform(200, 4_000, 5))
        for _ in range(48)
    ]
    return (0.1 * np.concatenate(chords)[:, None]).astype(np.float32)


@pytest.mark.parametrize("kind", ["WAV", "OGG"])
def test_benchmark_clip_under_another_name_is_refused(
    model_folder: Path, tmp_path: Path, fails: Fails, kind: str
) -> None:
    """New id, new file name, new video; the same bytes, or the same sound encoded again."""
    for name, seed in (("theirs", 1), ("ours", 2)):
        (tmp_path / f"{name}.wav").write_bytes(sound_bytes(melody(seed), 16_000))
    copy = tmp_path / "innocent.wav"
    copy.write_bytes(sound_bytes(melody(1), 16_000, kind))
    rows = [
        make_question(key, audio=f"{name}.wav", audio_sha256="").model_dump_json()
        for key, name in (("b1", "theirs"), ("q1", "ours"), ("q2", "innocent"))
    ]
    (tmp_path / "benchmark.jsonl").write_text(f"{rows[0]}\n")
    (tmp_path / "questions.jsonl").write_text(f"{rows[1]}\n{rows[2]}\n")
    told = ["--store", str(tmp_path / "store"), "--model", str(model_folder)]
    told += ["--questions", str(tmp_path / "questions.jsonl")]
    told += ["--benchmark", str(tmp_path / "benchmark.jsonl")]
    line = fails(ExitCode.DATA, "prompts", "search", *told)
    evidence = "has the same audio" if kind == "WAV" else "sounds like b1"
    assert f"1 of 2 questions are the benchmark's, first q2, which {evidence}" in line
    (tmp_path / "theirs.wav").unlink()
    assert "theirs.wav" in fails(ExitCode.DATA, "prompts", "search", *told)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give list, compare or search"),
        (("serch",), "give list, compare or search"),
        (("list", "--all"), "takes no settings"),
        (("compare",), "--store is needed"),
        (("search", "--alpha", "2"), "--alpha"),
        (("compare", "--store", "s", "--model", "m", "--variants", "v99"), "v99"),
    ],
)
def test_wrong_settings_are_one_line(arguments: tuple[str, ...], said: str, fails: Fails) -> None:
    """Exit 2, before any model is read."""
    assert said in fails(ExitCode.SETTINGS, "prompts", *arguments)


def test_list_shows_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    """Its name and its text."""
    assert ExitCode.DONE == run_command("prompts", ["list"])
    said = capsys.readouterr().out
    for version, text in SYSTEM_BY_VERSION.items():
        assert f"{version}  " in said
        assert text in said
