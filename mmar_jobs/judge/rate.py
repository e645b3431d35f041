"""Ask a judge for every rating that a journal lacks, many at a time, and keep each as it comes.

Not here: one call (client.py), what a rating is worth (rubric.py). A rating that cannot be had is
named with its reason and never becomes a number.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from mmar_jobs.errors import DataError, GateError, TryAgain
from mmar_jobs.judge.client import Client, Rejected, Reply, Transient, wait_s
from mmar_jobs.judge.journal import Journal, Rating
from mmar_jobs.judge.rubric import NUM_RATINGS, SYSTEM, MalformedReply, Subject, parse_reply

# So many ratings in a row that could not be had: the server is gone, not busy.
_MAX_LOST_IN_A_ROW: Final = 20
# A server that never answered gets so many calls from each worker: it is elsewhere, or not up.
_MAX_UNANSWERED: Final = 3


@dataclass(frozen=True)
class Effort:
    """How hard to try; `expected_model` is what the server must call itself, None to deduce it."""

    concurrency: int
    max_attempts: int
    first_pause_s: float
    judge_model: str
    expected_model: str | None


@dataclass
class Failures:
    """Why items have no score: the first reason of each; `num_transient` may pass on a new run."""

    reasons: dict[str, str] = field(default_factory=dict)
    num_transient: int = 0


async def rate_all(
    subjects: Sequence[Subject],
    client: Client,
    journal: Journal,
    *,
    effort: Effort,
    advance: Callable[[int], None],
) -> Failures:
    """Rate all subjects; GateError where the server is another model than the one asked for.

    SettingsError where no call can succeed, TryAgain where the server seems to be gone, DataError
    where it gives nothing usable. All ratings made until then are in the journal.
    """
    rater = _Rater(client, journal, effort, advance)
    for kept in journal.ratings.values():
        rater.check_model(kept.reported_model)
    open_ratings = [
        (subject, number)
        for subject in subjects
        for number in range(NUM_RATINGS)
        if (subject.id, number) not in journal.ratings
    ]
    queue = iter(open_ratings)
    async with asyncio.TaskGroup() as group:
        for _ in range(min(effort.concurrency, len(open_ratings))):
            group.create_task(rater.work(queue))
    return rater.failures


class _Rater:
    def __init__(
        self, client: Client, journal: Journal, effort: Effort, advance: Callable[[int], None]
    ) -> None:
        self._client = client
        self._journal = journal
        self._effort = effort
        self._advance = advance
        self._open_at_s = 0.0  # a busy server is left alone by all, not only by who was told
        self._model: str | None = None
        self._num_lost_in_a_row = 0
        self.failures = Failures()

    async def work(self, queue: Iterator[tuple[Subject, int]]) -> None:
        """Take one rating after the other off the queue that all workers share."""
        for subject, number in queue:
            if subject.id not in self.failures.reasons:
                await self._rate(subject, number)
            self._advance(1)

    def check_model(self, reported: str) -> None:
        """Raise GateError unless the server is the model asked for, and the same all the time."""
        asked, expected = self._effort.judge_model, self._effort.expected_model
        if not _is_same(reported, asked) if expected is None else reported != expected:
            raise GateError(
                f"the judge was asked for {expected or asked} and calls itself {reported}: point "
                f"--judge to the right server, or accept it with --judge-reports {reported}"
            )
        if self._model is not None and reported != self._model:
            raise GateError(
                f"the judge changed from {self._model} to {reported}: ratings are not mixed; pin "
                "the version by --judge-model and name another --journal"
            )
        self._model = reported

    async def _rate(self, subject: Subject, number: int) -> None:
        reason, is_transient = "", False
        for attempt in range(self._effort.max_attempts):
            await self._wait_for_opening()
            try:
                reply = await self._client.ask(SYSTEM, subject.prompt, attempt=attempt)
                self.check_model(reply.reported_model)
                self._keep(subject, number, reply, attempt + 1)
            except Rejected as error:
                reason, is_transient = f"rejected: {error}", False
                break
            except MalformedReply as error:
                reason, is_transient = f"malformed reply: {error}", False
            except Transient as error:
                reason, is_transient = str(error), True
                self._check_is_there(attempt, reason)
                if attempt + 1 < self._effort.max_attempts:
                    await self._back_off(attempt, error)
            else:
                self._num_lost_in_a_row = 0
                return
        self._give_up(subject, reason, is_transient=is_transient)

    def _keep(self, subject: Subject, number: int, reply: Reply, num_attempts: int) -> None:
        scores = parse_reply(reply.text, subject.num_criteria)
        self._journal.add(
            Rating(
                id=subject.id,
                rating=number,
                scores=scores,
                reply=reply.text,
                reported_model=reply.reported_model,
                fingerprint=reply.fingerprint,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                num_attempts=num_attempts,
            )
        )

    async def _back_off(self, attempt: int, error: Transient) -> None:
        pause_s = wait_s(attempt, self._effort.first_pause_s, error.retry_after_s)
        if error.retry_after_s is None:
            await asyncio.sleep(pause_s)
            return
        self._open_at_s = max(self._open_at_s, asyncio.get_running_loop().time() + pause_s)

    async def _wait_for_opening(self) -> None:
        while (left_s := self._open_at_s - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left_s)

    def _check_is_there(self, attempt: int, reason: str) -> None:
        if not self._client.has_answered and attempt + 1 >= _MAX_UNANSWERED:
            raise TryAgain(
                f"nothing answers at {self._client.judge.host} ({reason}): check --judge, or run "
                f"the same command again when it is up, {self._num_kept}"
            )

    @property
    def _num_kept(self) -> str:
        return f"{len(self._journal.ratings)} ratings are kept"

    def _give_up(self, subject: Subject, reason: str, *, is_transient: bool) -> None:
        self.failures.reasons.setdefault(subject.id, reason)
        self.failures.num_transient += is_transient
        self._num_lost_in_a_row += 1
        if self._num_lost_in_a_row < _MAX_LOST_IN_A_ROW:
            return
        if is_transient:
            raise TryAgain(
                f"the judge does not answer ({reason}): run the same command again when it does, "
                f"{self._num_kept}"
            )
        raise DataError(
            f"the judge gave no usable rating {_MAX_LOST_IN_A_ROW} times in a row ({reason}); "
            f"{self._num_kept}: take another judge, or if it rejects options, --temperature none "
            "and --judge-seed -1"
        )


def _is_same(reported: str, asked: str) -> bool:
    """Whether a name is the one asked for, or a dated version of it; folders before it may go."""
    pairs = ((reported, asked), (reported.rpartition("/")[2], asked.rpartition("/")[2]))
    return any(re.fullmatch(re.escape(name) + r"(-\d[\d-]*)?", told) for told, name in pairs)
