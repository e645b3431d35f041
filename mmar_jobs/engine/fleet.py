"""Several servers of one model: who is asked what, again and again until all is answered.

Not here: one server (link.py), what an answer means (server.py).

All questions about one clip go to one server, which has its sound and the prefix of its prompt at
hand; a server that is down hands its clips to the others.
"""

import asyncio
import random
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Generic, TypeVar

from mmar_jobs.engine.link import Link, Patience, Proof, Transient
from mmar_jobs.errors import GateError, TryAgain

J = TypeVar("J")
R = TypeVar("R")

_TICK_S: Final = 1.0


class Outage:
    """How long one question has met nothing but failures, and when the next attempt may be."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._num_failures = 0
        self._since_s = 0.0

    async def wait(self, link: Link, error: Transient, *, began_s: float) -> None:
        """Wait before the next attempt; TryAgain when the outage lasts too long.

        An attempt that was under way for a while met a server: a new outage begins with its end.
        """
        now_s = asyncio.get_running_loop().time()
        if self._num_failures == 0 or now_s - began_s > self._patience.stall_s:
            self._num_failures, self._since_s = 0, now_s
        self._num_failures += 1
        lasted_s = now_s - self._since_s
        if lasted_s >= self._patience.outage_s:
            raise TryAgain(
                f"{link.url} has not answered for {lasted_s:.0f} s (last: {error}): see to the "
                "server, then run the same command again, finished work is kept"
            )
        pause_s = self._pause_s(error)
        link.tell_failure(error, pause_s)
        await asyncio.sleep(pause_s)

    def _pause_s(self, error: Transient) -> float:
        if error.retry_after_s is not None:
            return error.retry_after_s
        doubled_s = self._patience.first_pause_s * 2.0 ** (self._num_failures - 1)
        longest_s = min(self._patience.longest_pause_s, doubled_s)
        return longest_s * random.uniform(0.5, 1)  # noqa: S311 - spreads the load, guards nothing


class Fleet:
    """The servers that serve one model."""

    def __init__(self, links: Sequence[Link], patience: Patience) -> None:
        self.links = links
        self._patience = patience
        self._homes: dict[str, Link] = {}

    @property
    def limit(self) -> int:
        """Questions that may be under way at all servers together."""
        return max(1, sum(link.limit for link in self.links if link.is_up))

    def home(self, clip: str) -> Link:
        """The server for the questions about a clip."""
        home = self._homes.get(clip)
        if home is not None and home.is_up:
            return home
        living = [link for link in self.links if link.is_up] or self.links
        home = min(living, key=lambda link: link.num_under_way / link.limit)
        self._homes[clip] = home
        return home

    async def persist(self, clip: str, attempt: Callable[[Link], Awaitable[R]]) -> R:
        """The result of `attempt` at the clip's server, repeated while it raises Transient."""
        outage = Outage(self._patience)
        while True:
            link, began_s = self.home(clip), asyncio.get_running_loop().time()
            try:
                return await attempt(link)
            except Transient as error:
                await outage.wait(link, error, began_s=began_s)


async def ticking(work: Coroutine[None, None, None], tick: Callable[[], None]) -> None:
    """Do `work`, calling `tick` once a second; what either raises ends both."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=_TICK_S))[0]:
            tick()
        task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def open_fleet(
    links: Sequence[Link], patience: Patience, prove: Proof
) -> AsyncIterator[Fleet]:
    """Connect to all servers, wait for those that are starting, keep those that serve the model.

    TryAgain where one does not answer, GateError where none serves the model or one proves false.
    """

    async def check(link: Link) -> bool:
        if not await link.find_model():
            return False
        await link.ensure_proven(prove)
        return True

    async with AsyncExitStack() as stack:
        for link in links:
            await stack.enter_async_context(link)
        found = [link for link in links if await Fleet([link], patience).persist("", check)]
        if not found:
            raise GateError(
                f"no server at {', '.join(link.url for link in links)} serves model "
                f"{links[0].name}: nothing was asked; serve it under a name that ends so "
                "(mmar-jobs serve-args prints how)"
            )
        watches = [asyncio.create_task(link.watch()) for link in found]
        try:
            yield Fleet(found, patience)
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)


class Dispatcher(Generic[J, R]):
    """Keeps jobs under way while `has_room` beside them, taking each when its turn comes."""

    def __init__(
        self,
        has_room: Callable[[Collection[J]], bool],
        work: Callable[[J], Coroutine[None, None, R]],
    ) -> None:
        self._has_room = has_room
        self._work = work
        self._next: deque[J] = deque()
        self._under_way: dict[asyncio.Task[R], J] = {}

    async def run(self, jobs: Iterable[J], on_done: Callable[[J, R], J | None]) -> None:
        """Do all jobs and those that `on_done` returns, which go first."""
        source = iter(jobs)
        try:
            while self._fill(source):
                # The limit may have grown meanwhile.
                done, _ = await asyncio.wait(
                    self._under_way, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    following = on_done(self._under_way.pop(task), task.result())
                    if following is not None:
                        self._next.append(following)
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    def _fill(self, source: Iterator[J]) -> bool:
        """Start jobs up to the limit; False when all is done."""
        while self._has_room(self._under_way.values()):
            job = self._next.popleft() if self._next else next(source, None)
            if job is None:
                break
            self._under_way[asyncio.create_task(self._work(job))] = job
        return bool(self._under_way)
