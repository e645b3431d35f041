"""vLLM's HTTP interface on the loopback, answered by the in-process engine, with faults on order.

Not here: the tests, and vLLM itself (tests/serve).
"""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


@dataclass
class Fault:
    """What becomes of one call: a status, or a reply that is cut, garbled or never sent.

    `keep_bytes` cuts the connection after so many bytes of the body; `garble` ends the body there
    although the header promises no more; `lost` never answers, `stall_s` waits first.
    """

    status: int = 200
    message: str = "as the script wants it"
    headers: dict[str, str] = field(default_factory=dict)
    keep_bytes: int | None = None
    garble: bool = False
    lost: bool = False
    stall_s: float = 0.0


# By number of the call, from 0, canaries not counted: what happens to it, None for nothing.
Script = Callable[[int], Fault | None]


class LoopbackVllm:
    """One server; what it was asked is kept in `bodies`, how often its canary in `num_canaries`."""

    def __init__(self, engine: LocalEngine, name: str, script: Script) -> None:
        self.engine = engine
        self.name = name
        self.script = script
        self.key = ""
        self.max_model_len = 2048
        self.bodies: list[dict[str, Any]] = []
        self.num_canaries = 0
        self.most_at_once = 0
        self.url = ""
        self.metrics_status = 200
        self.connections: set[socket.socket] = set()
        self._sounds: dict[str, bytes] = {}
        self._at_once = 0
        self._lock = threading.Lock()
        self.closing = threading.Event()

    def restart(self, *, engine: LocalEngine | None = None, name: str | None = None) -> None:
        """Cut every connection, as a server that dies does, and go on as another process."""
        self.engine = engine or self.engine
        self.name = name or self.name
        self._sounds.clear()
        for connection in list(self.connections):
            connection.shutdown(socket.SHUT_RDWR)

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

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a chat completion request."""
        if body["model"] != self.name:
            return 404, _error(f"The model `{body['model']}` does not exist.")
        sound = self._sound(body)
        if sound is None:
            return 400, _error("Cache miss for audio at index 0 but data is not provided.")
        clip = _padded(decode(sound, "clip"))
        request = Request(str(body["seed"]), _prompt(body), clip, tuple(range(body["n"])))
        with self._lock:
            traced = self.engine.trace(request, _sampling(body))
            processor = self.engine._processor
            encoded = encode_prompt(processor, request.prompt, request.clip, question_id="q")
        choices = [
            {
                "index": index,
                "finish_reason": "stop" if one.completion.finish is Finish.STOP else "length",
                "message": {"role": "assistant", "content": one.completion.text},
                "token_ids": list(one.token_ids),
                "logprobs": {"content": [{"logprob": value} for value in one.logprobs]},
            }
            for index, one in enumerate(traced)
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
    )


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "Error", "param": None, "code": 0}}


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    vllm: LoopbackVllm

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    server: "_Quiet"
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.vllm.connections.add(self.connection)

    def finish(self) -> None:
        self.server.vllm.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        if not self._allowed():
            return
        if self.path == "/metrics":
            self._send(self.server.vllm.metrics_status, self.server.vllm.metrics().encode())
        else:
            self._send(200, json.dumps(self.server.vllm.models()).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._allowed():
            return
        fault = self.server.vllm.begin(body)
        try:
            self._answer(body, fault)
        except OSError:
            self.close_connection = True
        finally:
            self.server.vllm.end(fault)

    def _answer(self, body: dict[str, Any], fault: Fault | None) -> None:
        if fault is None:
            status, told = self.server.vllm.complete(body)
            self._send(status, json.dumps(told).encode())
            return
        self.server.vllm.closing.wait(60 if fault.lost else fault.stall_s)
        if fault.lost:
            self.close_connection = True
            return
        if fault.status != 200:
            told = json.dumps(_error(fault.message)).encode()
            self._send(fault.status, told, fault.headers)
            return
        data = json.dumps(self.server.vllm.complete(body)[1]).encode()
        if fault.garble:
            self._send(200, data[: fault.keep_bytes])
            return
        self._send(200, data, keep_bytes=fault.keep_bytes)

    def _allowed(self) -> bool:
        if (
            self.server.vllm.key
            and self.headers.get("authorization") != f"Bearer {self.server.vllm.key}"
        ):
            self._send(401, b'{"error": "Unauthorized"}')
            return False
        return True

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        keep_bytes: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:keep_bytes])
        if keep_bytes is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serve(
    engine: LocalEngine, *, script: Script = lambda _: None, name: str = ""
) -> Iterator[LoopbackVllm]:
    """A running server of the engine's model."""
    vllm = LoopbackVllm(engine, name or f"mmar-{engine.identity.hash[:16]}", script)

    server = _Quiet(("127.0.0.1", 0), _Handler)
    server.vllm = vllm
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    vllm.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield vllm
    finally:
        vllm.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Wait for a condition; an AssertionError when it does not come."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)
