"""The edge to a judge: any OpenAI-compatible server. The only importer of openai.

Not here: prompts and replies (rubric.py). What a call can end in is sorted by what to do about it;
no message repeats what a server said beyond its status, for that may hold the key.
"""

import asyncio
import random
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import openai

from mmar_jobs.errors import SettingsError

_LONGEST_PAUSE_S: Final = 60.0
# A server that asks for more than this is out of quota, not busy.
_LONGEST_RETRY_AFTER_S: Final = 600.0
_BUSY: Final = 429
_TRANSIENT: Final = frozenset({408, 409, 425, _BUSY})


@dataclass(frozen=True)
class Reply:
    """What the judge wrote, and how the server names itself."""

    text: str
    reported_model: str
    fingerprint: str | None
    prompt_tokens: int
    completion_tokens: int


class Transient(Exception):
    """A call failed in a way that may pass; `retry_after_s` is what the server asked for."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Rejected(Exception):
    """The server will not answer this one request, however often it is asked."""


@dataclass(frozen=True)
class Judge:
    """Where the judge is and how it is asked; `key_name` is the variable that holds the key."""

    url: str
    model: str
    key_name: str
    timeout_s: float
    temperature: float | None
    seed: int | None

    @property
    def host(self) -> str:
        """The address without anything secret."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"


def check_url(url: str) -> str:
    """The URL of a judge; SettingsError where it is none, or holds a secret."""
    try:
        parts = urlsplit(url)
        is_bad = parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0
    except ValueError:
        is_bad = True
    if is_bad:
        raise SettingsError("--judge is not a URL: give one like http://host:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise SettingsError(
            "--judge holds more than an address: leave user, password and query out, the key comes "
            "from the environment"
        )
    return url


class Client:
    """Open connections to a judge; close them with `close`.

    `has_answered` says whether a server was there at all, whatever it said.
    """

    def __init__(self, judge: Judge, key: str | None) -> None:
        self.judge = judge
        self.has_answered = False
        # A server of one's own often has no key, but the library wants one.
        self._client = openai.AsyncOpenAI(
            base_url=judge.url, api_key=key or "none", timeout=judge.timeout_s, max_retries=0
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def ask(self, system: str, user: str, *, attempt: int) -> Reply:
        """One call. Raises Transient, Rejected, or SettingsError where no call can succeed.

        Later attempts use other seeds, or a malformed reply would come again word for word.
        """
        judge = self.judge
        options: dict[str, Any] = {}
        if judge.temperature is not None:
            options["temperature"] = judge.temperature
        if judge.seed is not None:
            options["seed"] = judge.seed + attempt
        try:
            # The library's timeout is for each read; a server that drips needs one for the whole.
            async with asyncio.timeout(judge.timeout_s):
                made = await self._client.chat.completions.create(
                    model=judge.model,
                    messages=[
                        {"role": "system", "content": system},
                        {"role": "user", "content": user},
                    ],
                    **options,
                )
        except (TimeoutError, openai.APITimeoutError):
            raise Transient(f"no reply within {judge.timeout_s:g} s") from None
        except openai.APIStatusError as error:
            self.has_answered = True
            raise self._sorted(error) from None
        except openai.APIConnectionError:
            raise Transient("no connection") from None
        except (openai.OpenAIError, ValueError):
            self.has_answered = True
            raise Transient("a reply that is no chat completion") from None
        self.has_answered = True
        return _reply(made)

    def _sorted(self, error: openai.APIStatusError) -> Exception:
        status = error.status_code
        if status in _TRANSIENT or status >= 500:
            return Transient(f"status {status}", _retry_after_s(error))
        if status in {401, 403}:
            return SettingsError(
                f"the judge at {self.judge.host} refuses the key (status {status}): set "
                f"{self.judge.key_name} in the environment"
            )
        if status in {404, 405}:
            return SettingsError(
                f"the judge at {self.judge.host} does not know {self.judge.model} (status "
                f"{status}): check --judge, which mostly ends in /v1, and --judge-model"
            )
        return Rejected(f"status {status}")


def wait_s(attempt: int, first_s: float, retry_after_s: float | None = None) -> float:
    """How long to wait before the next attempt: what the server asks for, else doubling."""
    if retry_after_s is not None:
        return retry_after_s
    return min(_LONGEST_PAUSE_S, first_s * 2.0**attempt) * random.uniform(0.5, 1)  # noqa: S311


def _retry_after_s(error: openai.APIStatusError) -> float | None:
    try:
        value = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return value if 0 <= value <= _LONGEST_RETRY_AFTER_S else None


def _reply(made: Any) -> Reply:
    try:
        text = made.choices[0].message.content
        model = made.model
    except (AttributeError, IndexError, TypeError):
        raise Transient("a reply that is no chat completion") from None
    if not isinstance(text, str) or not isinstance(model, str):
        raise Transient("a reply without text or model")
    usage = getattr(made, "usage", None)
    return Reply(
        text=text,
        reported_model=model,
        fingerprint=getattr(made, "system_fingerprint", None),
        prompt_tokens=getattr(usage, "prompt_tokens", None) or 0,
        completion_tokens=getattr(usage, "completion_tokens", None) or 0,
    )
