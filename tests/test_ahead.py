"""Asking many shards at once: nothing that was answered is lost, whatever ends a stage."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mmar_jobs.artifact import Artifact, Draft, begin
from mmar_jobs.audio import ClipReader
from mmar_jobs.engine import Listener, Request, Sampling
from mmar_jobs.errors import GateError, TryAgain
from mmar_jobs.identity import ModelIdentity
from mmar_jobs.manifest import sha256
from mmar_jobs.records import Candidate, Question
from mmar_jobs.stages import ahead
from mmar_jobs.stages.ahead import JOURNAL, in_asking_order
from mmar_jobs.stages.answering import Asker
from mmar_jobs.stages.asking import Asking
from mmar_jobs.store import Store, open_store
from tests.fakes import FakeEngine, Track, edges_of, make_question, sound_bytes, think, tone

SAMPLING = Sampling(
    temperature=0.9, top_p=0.95, top_k=0, repetition_penalty=1, max_tokens=99, seed=1
)


@dataclass
class FakeStream(FakeEngine):
    """Keeps `width` questions under way and ends the youngest first; dies after `dies_after`."""

    width: int = 5
    dies_after: int | None = None
    most_at_once: int = 0

    def stream(self, requests: Iterable[Request], sampling: Sampling, listener: Listener) -> None:
        """See StreamingEngine."""
        source = iter(requests)
        under_way: list[Request] = []
        num_done = 0
        while True:
            under_way += [r for _, r in zip(range(self.width - len(under_way)), source)]  # noqa: B905
            self.most_at_once = max(self.most_at_once, len(under_way))
            if not under_way:
                return
            if num_done == self.dies_after:
                raise TryAgain("the server is gone")
            request = under_way.pop()
            following = listener.answered(
                request, [self._complete(request, draw) for draw in request.draws]
            )
            under_way += [] if following is None else [following]
            listener.waiting()
            num_done += 1


def script(request: Request, draw: int, identity: ModelIdentity) -> str:
    """Even questions are always right, odd ones by turns."""
    number = int(request.question_id[1:])
    return think("one" if number % 2 == 0 or draw % 2 == 0 else "two", f"draw {draw}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return open_store(str(tmp_path / "store"))


@dataclass
class Bench:
    """Twelve questions in shards of four, asked eight times each."""

    store: Store
    clips: ClipReader
    questions: list[Question]

    def ask(
        self,
        engine: FakeEngine,
        track: Track | None = None,
        blocks: Sequence[Sequence[int]] = (range(8),),
        top_k: int | None = None,
    ) -> dict[str, list[Candidate]]:
        """Begin or go on; the candidates by shard."""
        draft = begin(self.store, "candidates", stage="s", recipe={}, inputs={})
        assert isinstance(draft, Draft)
        edges, _ = edges_of(self.store, lambda *_: engine, track=track or Track())
        asking = Asking("v9", SAMPLING, tuple(map(tuple, blocks)), 4, top_k=top_k, min_valid=1)
        names = Asker(engine, self.clips, edges, asking).ask(draft, self.questions, "label")
        return {name: draft.read_records(name, Candidate) for name in names}

    def journal(self) -> list[str]:
        """What is in the journal now."""
        return [key for key in self.store.list("candidates/") if JOURNAL in key]


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    """See Bench."""
    data = sound_bytes(tone(), 16_000)
    (tmp_path / "clips/audio").mkdir(parents=True)
    questions = [
        make_question(f"q{index}", audio_sha256=sha256(data), audio="audio/clip.wav")
        for index in range(12)
    ]
    (tmp_path / "clips/audio/clip.wav").write_bytes(data)
    return Bench(store, ClipReader(str(tmp_path / "clips")), questions)


@pytest.fixture(autouse=True)
def _flush_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journal with every answer, so that tests need not wait."""
    monkeypatch.setattr(ahead, "_FLUSH_AFTER_S", 0.0)


def engine(**options: object) -> FakeStream:
    """A streaming engine with the script."""
    return FakeStream(ModelIdentity(base_digest="b" * 64), script, **options)  # type: ignore[arg-type]


def plain() -> FakeEngine:
    """The same answers shard by shard."""
    return FakeEngine(ModelIdentity(base_digest="b" * 64), script)


def test_out_of_order_gives_the_same_shards(bench: Bench, tmp_path: Path) -> None:
    """Shards hold the questions and draws in order, as if they had been asked one by one."""
    streaming = engine()
    found = bench.ask(streaming)
    other = replace(bench, store=open_store(str(tmp_path / "other")))
    assert other.ask(plain()) == found
    assert streaming.most_at_once == 5
    assert not bench.journal()


@pytest.mark.parametrize("dies_after", range(12))
def test_a_lost_server_loses_no_answer(bench: Bench, dies_after: int) -> None:
    """What was answered before the end is not asked again, and the end is as it would have been."""
    first, second = engine(dies_after=dies_after), engine()
    with pytest.raises(TryAgain):
        bench.ask(first)
    found = bench.ask(second)
    asked = [(question, draw) for question, draw, _ in first.asked + second.asked]
    assert len(asked) == len(set(asked)) == 96
    assert [8] * 12 == [
        sum(candidate.question_id == question.id for shard in found.values() for candidate in shard)
        for question in bench.questions
    ]
    assert not bench.journal()


@pytest.mark.parametrize("raise_at", [1, 5, 14, 20])
def test_a_stop_loses_no_answer(bench: Bench, raise_at: int) -> None:
    """SIGTERM, which raises out of the progress, is no different."""
    first, second = engine(), engine()
    with pytest.raises(TryAgain):
        bench.ask(first, Track(raise_at=raise_at, error=TryAgain("asked to stop")))
    bench.ask(second)
    assert 96 == len({one[:2] for one in first.asked + second.asked})
    assert 96 == len(first.asked + second.asked)


def test_adaptive_blocks_follow_each_question(bench: Bench, tmp_path: Path) -> None:
    """Later blocks are asked only of questions that are open, also across a restart."""
    blocks, options = (range(2), range(2, 4), range(4, 8)), {"top_k": 2}
    other = replace(bench, store=open_store(str(tmp_path / "other")))
    expected = other.ask(plain(), blocks=blocks, **options)  # type: ignore[arg-type]
    first, second = engine(dies_after=11), engine()
    with pytest.raises(TryAgain):
        bench.ask(first, blocks=blocks, **options)  # type: ignore[arg-type]
    assert expected == bench.ask(second, blocks=blocks, **options)  # type: ignore[arg-type]
    assert len(first.asked + second.asked) == len(set(first.asked + second.asked)) < 96


def test_progress_adds_up(bench: Bench) -> None:
    """The bar ends full, with draws that were never needed counted in."""
    track = Track()
    bench.ask(engine(), track, blocks=(range(2), range(2, 4), range(4, 8)), top_k=2)
    assert {"label": 96} == track.totals == track.done


def test_answers_are_durable_within_seconds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an engine waits for, an answer is in the journal soon after it came."""
    monkeypatch.setattr(ahead, "_FLUSH_AFTER_S", 0.05)
    seen: list[int] = []

    class Slow(FakeStream):
        def stream(
            self, requests: Iterable[Request], sampling: Sampling, listener: Listener
        ) -> None:
            for request in requests:
                listener.answered(request, [self._complete(request, d) for d in request.draws])
                if not seen:
                    time.sleep(0.06)
                    listener.waiting()
                    seen.append(len(bench.journal()))

    bench.ask(Slow(ModelIdentity(base_digest="b" * 64), script))
    assert [1] == seen


def test_errors_stop_it_before_the_shard(bench: Bench) -> None:
    """A shard with a question that met nothing but errors is not written."""
    with pytest.raises(GateError, match="an error is not an answer"):
        bench.ask(engine(broken=frozenset({"q1"})))
    assert not bench.store.list("candidates/part-00000")


def test_the_journal_is_no_part_of_the_artifact(bench: Bench) -> None:
    """A journal left by a kill between the last shard and the manifest goes with the next run."""
    bench.ask(engine())
    draft = begin(bench.store, "candidates", stage="s", recipe={}, inputs={})
    assert isinstance(draft, Draft)
    name = draft.names("part-")[0]
    draft.write_records(f"{JOURNAL}000003.jsonl.gz", draft.read_records(name, Candidate))
    bench.ask(engine())
    assert not bench.journal()
    finished = draft.finish(draft.names("part-"), counts={}, metrics={}, placement={}, cost={})
    assert isinstance(finished, Artifact)
    assert 96 == len(list(finished.records(Candidate)))


def test_the_last_questions_come_longest_first() -> None:
    """Shard after shard, but the end is filled up with short clips."""
    questions = [make_question(f"q{index}", audio_s=1.0 + index * 7 % 10) for index in range(300)]
    ordered = in_asking_order(questions)
    assert questions[:44] == ordered[:44]
    lengths = [question.audio_s for question in ordered[44:]]
    assert sorted(lengths, reverse=True) == lengths
    assert sorted(q.id for q in questions) == sorted(q.id for q in ordered)
