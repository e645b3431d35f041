"""One vLLM server: connections, what their failures mean, and the proof of which model answers.

Not here: what travels (wire.py), and which server is asked what (fleet.py).

A reply counts only once the server has proven, after the connection that brought it was opened,
that it serves the expected model: behind an address that answers again another model may stand.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

import httpx2
import structlog
from pydantic_core import from_json

from mmar_jobs.engine import pace
from mmar_jobs.engine.wire import MalformedReply, served_models, streamed_failure
from mmar_jobs.errors import DataError, GateError, SettingsError

KEY_NAME: Final = "VLLM_API_KEY"
_BUSY: Final = frozenset({408, 409, 425, 429})
_REFUSED: Final = frozenset({401, 403})
_JSON: Final = {"content-type": "application/json"}
_CHAT: Final = "/v1/chat/completions"
_POLL_TIMEOUT_S: Final = 10.0
# A server that asks for more than this is out of quota, not busy.
_LONGEST_RETRY_AFTER_S: Final = 600.0
_LONGEST_MESSAGE: Final = 300
# Hundreds of questions under way fail together, and again at every attempt.
_BETWEEN_LINES_S: Final = 5.0


class Transient(Exception):
    """A call failed in a way that may pass; `retry_after_s` is what the server asked for."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


# Raises unless what a link answers comes from the expected weights.
Proof: TypeAlias = Callable[["Link"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for what, seconds.

    `outage_s`: a question that meets failures for so long ends the stage; `stall_s`: a server that
    is idle, or silent, for so long has lost what it still owes.
    """

    outage_s: float = 600.0
    stall_s: float = 30.0
    poll_s: float = 1.0
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0


class Link:
    """A server at one address; use as an async context."""

    def __init__(self, url: str, key: str | None, model_hash: str, patience: Patience) -> None:
        self.url = url
        self.model = ""
        self.max_model_len = 0
        self.limit = pace.FIRST_LIMIT
        self.is_up = True
        self.sounds: set[str] = set()
        self.name = model_hash[:16]
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._patience = patience
        self._attempts: dict[asyncio.Timeout, float] = {}
        self._num_connections = 0
        self._num_proven = -1
        self._proving = asyncio.Lock()
        self._num_untold = 0
        self._told_at_s = -math.inf

    async def __aenter__(self) -> Self:
        self._open = AsyncExitStack()
        self._client = await self._open.enter_async_context(
            httpx2.AsyncClient(
                base_url=self.url,
                headers=self._headers,
                # How long an answer takes is the watch's business.
                timeout=httpx2.Timeout(_POLL_TIMEOUT_S, read=None, pool=None),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
                trust_env=False,
            )
        )
        # A proof over a connection that is kept could be one of a server that is no more.
        self._control = await self._open.enter_async_context(
            httpx2.AsyncClient(
                base_url=self.url,
                headers=self._headers,
                timeout=httpx2.Timeout(_POLL_TIMEOUT_S, read=None),
                limits=httpx2.Limits(max_keepalive_connections=0),
                trust_env=False,
            )
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._open.aclose()

    @property
    def num_under_way(self) -> int:
        """Requests that the server has not answered yet."""
        return len(self._attempts)

    def tell_failure(self, error: Transient, pause_s: float) -> None:
        """Say in the log that a request failed and when it is tried again; of many at once one.

        Each line counts the failures since the one before.
        """
        now_s = asyncio.get_running_loop().time()
        self._num_untold += 1
        if now_s - self._told_at_s < _BETWEEN_LINES_S:
            return
        structlog.get_logger().info(
            "request_failed",
            url=self.url,
            reason=str(error),
            retry_in_s=round(pause_s, 1),
            num_requests=self._num_untold,
        )
        self._num_untold, self._told_at_s = 0, now_s

    async def find_model(self) -> bool:
        """Look up the model by its hash; False where the server serves others."""
        data = await self._get("/v1/models")
        try:
            models = served_models(from_json(data))
        except (ValueError, MalformedReply) as error:
            raise Transient(f"a list of models that is none ({error})") from None
        found = next((model for model in models if model.endswith(self.name)), None)
        if found is None:
            structlog.get_logger().warning(
                "server_skipped", url=self.url, serves=sorted(models), wanted=self.name
            )
            return False
        self.model, self.max_model_len = found, models[found]
        return True

    async def ask(self, body: bytes, prove: Proof) -> bytes:
        """One attempt at one request.

        Raises Transient; DataError with the server's words where it refuses the request as such,
        SettingsError where it refuses us, GateError where it is not what it was.
        """
        data = await self._post(self._client, body, trace=self._trace)
        await self.ensure_proven(prove)
        return data

    async def ensure_proven(self, prove: Proof) -> None:
        """Prove the model unless that was done since the youngest connection was opened."""
        async with self._proving:
            num_connections = self._num_connections
            if self._num_proven >= num_connections:
                return
            if not await self.find_model():
                raise GateError(
                    f"{self.url} no longer serves model {self.name}: nothing that it said since "
                    "is used; serve the right model, then run the same command again"
                )
            await prove(self)
            self._num_proven = num_connections

    async def ask_control(self, body: bytes) -> bytes:
        """One attempt over a connection of its own, for the proof itself."""
        return await self._post(self._control, body)

    async def watch(self) -> None:
        """Follow the server's load, for ever; sets `limit`, and gives lost answers up."""
        now = asyncio.get_running_loop().time
        idle_since = silent_since = None
        while True:
            await asyncio.sleep(self._patience.poll_s)
            try:
                load = pace.parse_load((await self._get("/metrics")).decode())
            except (Transient, ValueError) as error:
                silent_since = silent_since or now()
                if now() - silent_since >= self._patience.stall_s:
                    self.is_up = False
                    self._give_up(before=now(), reason=f"silent: {error}")
                continue
            self.is_up, silent_since = True, None
            self.limit = pace.next_limit(self.limit, self.num_under_way, load)
            idle_since = (idle_since or now()) if load.is_idle else None
            if idle_since is not None and now() - idle_since >= self._patience.stall_s:
                self._give_up(before=idle_since, reason="idle")

    def _give_up(self, *, before: float, reason: str) -> None:
        lost = [attempt for attempt, began in self._attempts.items() if began < before]
        for attempt in lost:
            if not attempt.expired():
                attempt.reschedule(0)
        if lost:
            structlog.get_logger().warning(
                "answers_lost", url=self.url, num_requests=len(lost), reason=reason
            )

    async def _post(self, client: httpx2.AsyncClient, body: bytes, **extensions: Any) -> bytes:
        async with self._attempt(), self._failures_sorted():
            response = await client.post(_CHAT, content=body, headers=_JSON, extensions=extensions)
            self._check(response)
            # What fails after the first event cannot change the status any more.
            failure = streamed_failure(response.content)
            if failure is not None:
                raise self._failure(response, failure.code, failure.message)
            return response.content

    async def _get(self, path: str) -> bytes:
        async with self._failures_sorted(), asyncio.timeout(_POLL_TIMEOUT_S):
            response = await self._control.get(path)
            self._check(response)
            return response.content

    @asynccontextmanager
    async def _attempt(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(None) as attempt:
                self._attempts[attempt] = asyncio.get_running_loop().time()
                try:
                    yield
                finally:
                    del self._attempts[attempt]
        except TimeoutError:
            raise Transient("the server lost the request") from None

    @asynccontextmanager
    async def _failures_sorted(self) -> AsyncIterator[None]:
        try:
            yield
        except httpx2.ConnectError as error:
            self.is_up = False
            raise Transient(f"no connection ({error})") from None
        except httpx2.TransportError as error:
            raise Transient(f"{type(error).__name__}: {error}") from None
        except TimeoutError:
            raise Transient("no reply in time") from None

    async def _trace(self, event: str, _: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self._num_connections += 1

    def _check(self, response: httpx2.Response) -> None:
        if response.status_code != 200:
            raise self._failure(response, response.status_code, _message(response))

    def _failure(self, response: httpx2.Response, status: int, told: str) -> Exception:
        """What a status, and what the server says to it, mean to whoever asked."""
        message = " ".join(told.split())[:_LONGEST_MESSAGE]
        if status in _BUSY or status >= 500:
            reason = f"status {status}: {message}" if message else f"status {status}"
            return Transient(reason, _retry_after_s(response))
        if status in _REFUSED:
            return SettingsError(
                f"{self.url} refuses the key (status {status}): set {KEY_NAME} in the environment "
                "to the server's"
            )
        if status == 404 and "model" not in message:
            return SettingsError(
                f"{self.url} has no {response.url.path}: give the address of a vLLM server, like "
                "http://host:8000"
            )
        if status == 404:
            return GateError(f"{self.url} no longer serves model {self.name}: {message}")
        return DataError(f"{self.url} refuses a request (status {status}): {message}")


def _message(response: httpx2.Response) -> str:
    """What the server says of an error."""
    try:
        told = response.json()
        return str(told.get("error", told)["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text


def _retry_after_s(response: httpx2.Response) -> float | None:
    try:
        value = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return value if 0 <= value <= _LONGEST_RETRY_AFTER_S else None
