"""Asking a streaming engine the questions of many shards at once, with every answer soon durable.

Not here: how a question is asked and what its answers are (asking.py).

Answers come in any order, shards are written in the order of their ends. What is sampled but not
yet in a shard goes into a journal beside them every few seconds; the next attempt reads it, asks
for the rest, and removes it once all shards are there.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mmar_jobs.artifact import Draft
from mmar_jobs.engine import Completion, Request, StreamingEngine
from mmar_jobs.progress import Advance
from mmar_jobs.records import Candidate, Question
from mmar_jobs.stages.asking import Questioner, check_errors

JOURNAL: Final = "journal/"
_FLUSH_AFTER_S: Final = 15.0
# Of the last questions the longest clips are asked first, so that the short ones fill the end.
_NUM_TAIL: Final = 256


def ask_ahead(
    engine: StreamingEngine,
    questioner: Questioner,
    draft: Draft,
    shards: Mapping[str, Sequence[Question]],
    advance: Advance,
) -> None:
    """Make all `shards`; whatever ends this early, what was answered before is durable."""
    work = _Work(questioner, draft, shards, advance)
    work.recall()
    try:
        engine.stream(work.requests(), questioner.asking.sampling, work)
    except BaseException:
        work.flush()
        raise
    assert work.is_done, "a stream answers all that it is asked"
    for name in draft.names(JOURNAL):
        draft.discard(name)


def in_asking_order(questions: Sequence[Question]) -> list[Question]:
    """Shard after shard, so that few are open at a time, but the last questions longest first."""
    tail = sorted(questions[-_NUM_TAIL:], key=lambda question: -question.audio_s)
    return [*questions[:-_NUM_TAIL], *tail]


class _Work:
    """Shards under way; the Listener of the stream that fills them."""

    def __init__(
        self,
        questioner: Questioner,
        draft: Draft,
        shards: Mapping[str, Sequence[Question]],
        advance: Advance,
    ) -> None:
        self._questioner = questioner
        self._draft = draft
        self._advance = advance
        self._shards = shards
        self._shard_of = {q.id: name for name, chunk in shards.items() for q in chunk}
        self._by_id = {question.id: question for chunk in shards.values() for question in chunk}
        self._num_open = {name: len(chunk) for name, chunk in shards.items()}
        self._found: dict[str, list[Candidate]] = {}
        self._unsaved: dict[str, list[Candidate]] = {}
        self._unsaved_since_s = 0.0
        self._num_pieces = 0

    @property
    def is_done(self) -> bool:
        """Whether every shard is written."""
        return not any(self._num_open.values())

    def recall(self) -> None:
        """Take over what earlier attempts left in the journal."""
        for name in self._draft.names(JOURNAL):
            self._num_pieces = max(self._num_pieces, int(name.removeprefix(JOURNAL)[:6]) + 1)
            for candidate in self._draft.read_records(name, Candidate):
                if candidate.question_id in self._by_id:
                    self._found.setdefault(candidate.question_id, []).append(candidate)
        for question_id in list(self._found):
            self._advance(len(self._found[question_id]))
            if self._next_block(question_id) is None:
                self._close(question_id)

    def requests(self) -> Iterator[Request]:
        """The next request of every question that is still open."""
        open_questions = [
            question
            for name, chunk in self._shards.items()
            for question in chunk
            if self._num_open[name] and self._next_block(question.id) is not None
        ]
        for question in in_asking_order(open_questions):
            block = self._next_block(question.id)
            assert block is not None, "a question is closed by its own answers alone"
            yield self._questioner.request(question, block)

    def answered(self, request: Request, completions: Sequence[Completion]) -> Request | None:
        """See Listener."""
        question = self._by_id[request.question_id]
        records = self._questioner.records(question, request, completions)
        if not self._unsaved:
            self._unsaved_since_s = time.monotonic()
        self._found.setdefault(question.id, []).extend(records)
        self._unsaved.setdefault(question.id, []).extend(records)
        block = self._next_block(question.id)
        self._advance(len(records))
        if block is None:
            self._close(question.id)
            return None
        return self._questioner.request(question, block)

    def waiting(self) -> None:
        """See Listener."""
        if self._unsaved and time.monotonic() - self._unsaved_since_s >= _FLUSH_AFTER_S:
            self.flush()
        self._advance(0)

    def flush(self) -> None:
        """Make durable what is in no shard yet."""
        if not self._unsaved:
            return
        records = [record for unsaved in self._unsaved.values() for record in unsaved]
        self._draft.write_records(f"{JOURNAL}{self._num_pieces:06d}.jsonl.gz", records)
        self._num_pieces += 1
        self._unsaved.clear()

    def _next_block(self, question_id: str) -> tuple[int, ...] | None:
        """The draws to ask for next; None when the question has all that it will get."""
        found = self._found.get(question_id, [])
        left = len(found)
        for block in self._questioner.asking.blocks:
            if left:
                left -= len(block)
                continue
            if found and self._questioner.is_settled(self._by_id[question_id], found):
                return None
            return block
        return None

    def _close(self, question_id: str) -> None:
        """Count a question that is done, and write its shard with the last of them."""
        num_draws = sum(map(len, self._questioner.asking.blocks))
        self._advance(num_draws - len(self._found[question_id]))
        name = self._shard_of[question_id]
        self._num_open[name] -= 1
        if self._num_open[name]:
            return
        candidates = [one for question in self._shards[name] for one in self._found[question.id]]
        check_errors(candidates)
        self._draft.write_records(name, candidates)
        for question in self._shards[name]:
            del self._found[question.id]
            self._unsaved.pop(question.id, None)
