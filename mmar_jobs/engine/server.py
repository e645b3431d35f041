"""The engine over vLLM's OpenAI-compatible server: many questions under way, nothing lost.

Not here: one connection's failures (link.py), which server is asked (fleet.py), starting servers.

A clip travels as the samples that we decoded, not as its file: the server then hears what training
hears, whatever its own decoder and resampler would make of the file.
"""

import asyncio
import base64
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import msgspec

from mmar_jobs.artifact import file_sha256
from mmar_jobs.audio import Clip, encode_wav, num_audio_tokens
from mmar_jobs.base_model import model_digest
from mmar_jobs.chat import load_tokenizer
from mmar_jobs.engine import (
    CANARY_REQUEST,
    CANARY_SAMPLING,
    Completion,
    Listener,
    Request,
    Sampling,
    answer_all,
)
from mmar_jobs.engine.fleet import Dispatcher, Fleet, open_fleet, ticking
from mmar_jobs.engine.link import Link, Patience, Transient
from mmar_jobs.engine.prompt_tokenizer import PromptTokenizer
from mmar_jobs.engine.wire import (
    MalformedReply,
    Reply,
    Sound,
    check_room,
    completions,
    parse_reply,
    request_body,
)
from mmar_jobs.errors import DataError
from mmar_jobs.identity import Canary, ModelIdentity, check_canary
from mmar_jobs.layout import ADAPTER_WEIGHTS
from mmar_jobs.manifest import sha256
from mmar_jobs.recipes import EngineSettings


@dataclass(frozen=True)
class Site:
    """Where the servers are and how they are reached; `media_dir` is a folder that they can read.

    `key` stays out of settings, logs and messages.
    """

    urls: tuple[str, ...]
    key: str | None
    media_dir: Path | None
    patience: Patience


class ServerEngine:
    """Asks servers that serve exactly `identity`; see StreamingEngine."""

    def __init__(
        self, identity: ModelIdentity, tokenizer: Any, site: Site, *, tolerance_nats: float
    ) -> None:
        self.identity = identity
        self._site = site
        self._tolerance_nats = tolerance_nats
        self._tokenizer = PromptTokenizer(tokenizer)
        self.prompt_opens_thinking = self._tokenizer.opens_thinking
        self._canary: Canary | None = None

    def canary(self) -> Canary:
        """What every server said when it was last proven; asks where none was yet."""
        if self._canary is None:
            answer_all(self, [], CANARY_SAMPLING, lambda _: None)
        assert self._canary is not None, "no stream begins before its servers are proven"
        return self._canary

    def answer(
        self, requests: Sequence[Request], sampling: Sampling, on_answer: Callable[[int], None]
    ) -> list[list[Completion]]:
        """See Engine.answer."""
        return answer_all(self, requests, sampling, on_answer)

    def stream(self, requests: Iterable[Request], sampling: Sampling, listener: Listener) -> None:
        """See StreamingEngine.stream.

        Servers are proven before anything is asked, and again after every reconnect. GateError
        where one serves another model, TryAgain where one is gone for longer than the budget.
        """
        asyncio.run(ticking(self._stream(requests, sampling, listener), listener.waiting))

    async def _stream(
        self, requests: Iterable[Request], sampling: Sampling, listener: Listener
    ) -> None:
        site = self._site
        links = [Link(url, site.key, self.identity.hash, site.patience) for url in site.urls]
        async with open_fleet(links, site.patience, self._prove) as fleet:
            dispatcher = Dispatcher[Request, list[Completion]](
                lambda under_way: len(under_way) < fleet.limit,
                lambda request: self._ask(fleet, request, sampling),
            )
            await dispatcher.run(requests, listener.answered)

    async def _ask(self, fleet: Fleet, request: Request, sampling: Sampling) -> list[Completion]:
        prompt_ids = self._tokenizer.prompt_ids(request.prompt)
        num_tokens = len(prompt_ids) + num_audio_tokens(len(request.clip.waveform))
        name = sha256(request.clip.waveform.tobytes())

        async def attempt(link: Link) -> list[Completion]:
            check_room(link.url, link.max_model_len, num_tokens, sampling)
            reply = await self._send(link, request, sampling, name)
            return completions(reply, request, prompt_ids, self._tokenizer.vocabulary)

        return await fleet.persist(name, attempt)

    async def _send(self, link: Link, request: Request, sampling: Sampling, name: str) -> Reply:
        """One attempt; a clip that the server has seen is only named, and sent if it is gone."""
        if name in link.sounds and self._site.media_dir is None:
            link.sounds.discard(name)
            # One of the server's two caches of clips may have lost it: status 400, or 500.
            with suppress(DataError):
                body = _body(link, request, sampling, Sound(None, name))
                reply = _parsed(await link.ask(body, self._prove), request, sampling)
                link.sounds.add(name)
                return reply
        # Of a clip on its way nothing is held but these bytes, for hundreds are under way.
        body = _body(link, request, sampling, Sound(self._url_of(request.clip, name), name))
        reply = _parsed(await link.ask(body, self._prove), request, sampling)
        link.sounds.add(name)
        return reply

    async def _prove(self, link: Link) -> None:
        """Raise GateError unless the canary is what it was, at any server, when first asked."""
        sound = Sound(_data_url(CANARY_REQUEST.clip), "canary")
        body = _body(link, CANARY_REQUEST, CANARY_SAMPLING, sound)
        data = await link.ask_control(body)
        [choice] = _parsed(data, CANARY_REQUEST, CANARY_SAMPLING).choices
        canary = Canary(token_ids=tuple(choice.token_ids), logprobs=tuple(choice.logprobs))
        if self._canary is None:
            self._canary = canary
        check_canary(self._canary, canary, model=link.model, tolerance_nats=self._tolerance_nats)

    def _url_of(self, clip: Clip, name: str) -> str:
        folder = self._site.media_dir
        if folder is None:
            return _data_url(clip)
        path = (folder / f"{name}.wav").resolve()
        if not path.exists():
            with NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(encode_wav(clip))
            Path(file.name).chmod(0o644)  # the server may run as another user
            os.replace(file.name, path)  # noqa: PTH105 - in one step, whoever else writes it
        return path.as_uri()


def _body(link: Link, request: Request, sampling: Sampling, sound: Sound) -> bytes:
    return msgspec.json.encode(request_body(link.model, request, sampling, sound))


def _parsed(data: bytes, request: Request, sampling: Sampling) -> Reply:
    try:
        return parse_reply(data, len(request.draws), logprobs=sampling.logprobs)
    except MalformedReply as error:
        raise Transient(f"a reply that is no chat completion ({error})") from None


def _data_url(clip: Clip) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(encode_wav(clip)).decode()}"


def open_server_engine(
    base: Path, adapter: Path | None, settings: EngineSettings, *, key: str | None
) -> ServerEngine:
    """An engine over the servers of `settings`, which must serve base and adapter as one model.

    No weights are loaded here: the base's folder gives the digest, the tokenizer and the template.
    """
    adapter_digest = None if adapter is None else file_sha256(adapter / ADAPTER_WEIGHTS)
    site = Site(
        urls=settings.server_urls,
        key=key,
        media_dir=Path(settings.media_dir) if settings.media_dir else None,
        patience=Patience(outage_s=settings.outage_s),
    )
    identity = ModelIdentity(base_digest=model_digest(base), adapter_digest=adapter_digest)
    return ServerEngine(
        identity, load_tokenizer(base), site, tolerance_nats=settings.canary_tolerance_nats
    )
