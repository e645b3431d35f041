"""vLLM's HTTP interface on the loopback, answered by the in-process engine, with faults on order.

Not here: the tests, and vLLM itself (tests/serve).
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from mmar_jobs.audio import HOP_LENGTH, SAMPLE_RATE_HZ, Clip, decode
from mmar_jobs.encode import encode_prompt
from mmar_jobs.engine import CANARY_PROMPT, Request, Sampling
from mmar_jobs.engine.local import LocalEngine
from mmar_jobs.prompt import Prompt
from mmar_jobs.records import Finish
from tests.engine.faults import Fault, FaultyHandler, FaultyServer, Script, error, listening
from tests.engine.stream import streamed


class LoopbackVllm:
    """One server; what it was asked is kept in `bodies`, how often its canary in `num_canaries`.

    The script counts calls without those for the canary.
    """

    def __init__(
        self, engine: LocalEngine, name: str, script: Script, server: FaultyServer
    ) -> None:
        self.engine = engine
        self.url = server.url
        self._server = server
        self.name = name
        self.script = script
        self.key = ""
        self.max_model_len = 2048
        self.bodies: list[dict[str, Any]] = []
        self.num_canaries = 0
        self.most_at_once = 0
        self.metrics_status = 200
        self._sounds: dict[str, bytes] = {}
        self._at_once = 0
        self._lock = threading.Lock()

    def restart(self, *, engine: LocalEngine | None = None, name: str | None = None) -> None:
        """Cut every connection, as a server that dies does, and go on as another process."""
        self.engine = engine or self.engine
        self.name = name or self.name
        self._sounds.clear()
        self._server.cut()

    def models(self) -> dict[str, Any]:
        """The answer to GET /v1/models."""
        return {"data": [{"id": self.name, "max_model_len": self.max_model_len}]}

    def metrics(self) -> str:
        """The gauges that vLLM has."""
        labels = f'{{engine="0",model_name="{self.name}"}}'
        return (
            f"vllm:num_requests_running{labels} {float(self._at_once)}\n"
            f"vllm:num_requests_waiting{labels} 0.0\nvllm:kv_cache_usage_perc{labels} 0.1\n"
        )

    def begin(self, body: dict[str, Any]) -> Fault | None:
        """Count a call in; its fault."""
        with self._lock:
            if _prompt(body) == CANARY_PROMPT:
                self.num_canaries += 1
                fault = None
            else:
                self.bodies.append(body)
                fault = self.script(len(self.bodies) - 1)
            self._at_once += 0 if fault is not None and fault.lost else 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return fault

    def end(self, fault: Fault | None) -> None:
        """Count a call out."""
        with self._lock:
            self._at_once -= 0 if fault is not None and fault.lost else 1

    def complete_json(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """Status and bytes of the answer to a chat completion request."""
        status, told = self.complete(body)
        return status, streamed(told) if status == 200 else json.dumps(told).encode()

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a chat completion request."""
        if body["model"] != self.name:
            return 404, error(f"The model `{body['model']}` does not exist.")
        sound = self._sound(body)
        if sound is None:
            return 400, error("Cache miss for audio at index 0 but data is not provided.")
        clip = _padded(decode(sound, "clip"))
        request = Request(str(body["seed"]), _prompt(body), clip, tuple(range(body["n"])))
        with self._lock:
            [completions] = self.engine.answer([request], _sampling(body), lambda _: None)
            processor = self.engine._processor
            encoded = encode_prompt(processor, request.prompt, request.clip, question_id="q")
        choices = [
            {
                "index": index,
                "finish_reason": "stop" if one.finish is Finish.STOP else "length",
                "message": {"role": "assistant", "content": one.text},
                "token_ids": list(one.token_ids),
                "logprobs": {"content": [{"logprob": value} for value in one.logprobs]}
                if body["logprobs"]
                else None,
            }
            for index, one in enumerate(completions)
        ]
        # The order of choices is nowhere promised.
        prompt_ids = encoded.input_ids_S.tolist()
        return 200, {"choices": choices[::-1], "prompt_token_ids": prompt_ids, "model": self.name}

    def _sound(self, body: dict[str, Any]) -> bytes | None:
        part = body["messages"][1]["content"][0]
        if part["audio_url"] is None:
            return self._sounds.get(part["uuid"])
        url = urlsplit(part["audio_url"]["url"])
        if url.scheme == "file":
            data = Path(unquote(url.path)).read_bytes()
        else:
            data = base64.b64decode(url.path.partition(",")[2])
        self._sounds[part["uuid"]] = data
        return data


def _padded(clip: Clip) -> Clip:
    """The clip as vLLM hears it: filled up with silence to whole mel frames."""
    missing = -len(clip.waveform) % HOP_LENGTH
    waveform = np.pad(clip.waveform, (0, missing))
    return replace(clip, waveform=waveform, duration_s=len(waveform) / SAMPLE_RATE_HZ)


def _prompt(body: dict[str, Any]) -> Prompt:
    system, user = body["messages"]
    assert ["audio_url", "text"] == [part["type"] for part in user["content"]]
    return Prompt(system["content"][0]["text"], user["content"][1]["text"])


def _sampling(body: dict[str, Any]) -> Sampling:
    return Sampling(
        temperature=body["temperature"],
        top_p=body["top_p"],
        top_k=body["top_k"],
        repetition_penalty=body["repetition_penalty"],
        max_tokens=body["max_completion_tokens"],
        seed=body["seed"],
        logprobs=body["logprobs"],
    )


class _Server(FaultyServer):
    vllm: LoopbackVllm


class _Handler(FaultyHandler):
    server: _Server

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server looks up
        if not self._allowed():
            return
        if self.path == "/metrics":
            self.send(self.server.vllm.metrics_status, self.server.vllm.metrics().encode())
        else:
            self.send(200, json.dumps(self.server.vllm.models()).encode())

    def do_POST(self) -> None:  # noqa: N802 - the same
        body = json.loads(self.body())
        if not self._allowed():
            return
        vllm = self.server.vllm
        fault = vllm.begin(body)
        try:
            self.reply(fault, lambda: vllm.complete_json(body))
        finally:
            vllm.end(fault)

    def _allowed(self) -> bool:
        key = self.server.vllm.key
        if key and self.headers.get("authorization") != f"Bearer {key}":
            self.send(401, b'{"error": "Unauthorized"}')
            return False
        return True


@contextmanager
def serve(
    engine: LocalEngine,
    *,
    script: Script = lambda _: None,
    name: str = "",
    address: tuple[str, int] = ("127.0.0.1", 0),
) -> Iterator[LoopbackVllm]:
    """A running server of the engine's model."""
    server = _Server(_Handler, address)
    server.vllm = LoopbackVllm(engine, name or f"mmar-{engine.identity.hash[:16]}", script, server)
    with listening(server):
        yield server.vllm


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Wait for a condition; an AssertionError when it does not come."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)
