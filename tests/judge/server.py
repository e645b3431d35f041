"""A judge on the loopback that follows a script of faults; what it was asked is kept.

Not here: the tests (test_judge.py).
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """One HTTP reply; `stall_s` before it."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    stall_s: float = 0.0


def marks(*scores: Any) -> str:
    """A well-formed rating."""
    rows = [
        {"criterion": number, "score": score, "justification": "said so"}
        for number, score in enumerate(scores, start=1)
    ]
    return json.dumps(rows)


def completion(text: Any, *, model: str = "judge-1", fingerprint: str | None = "fp_a") -> Answer:
    """A chat completion with this text."""
    return Answer(
        body={
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "system_fingerprint": fingerprint,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": text},
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    )


class JudgeServer:
    """`script(number, request)` says what the call of that number, from 0, gets."""

    def __init__(self, script: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times_s: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def enter(self, request: dict[str, Any], key: str) -> int:
        """Count a call in."""
        with self._lock:
            self.requests.append(request)
            self.keys.append(key)
            self.times_s.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return len(self.requests) - 1

    def leave(self) -> None:
        """Count a call out."""
        with self._lock:
            self._at_once -= 1


class Quiet(ThreadingHTTPServer):
    """A client that hangs up is part of the game."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


@contextmanager
def serve(script: Callable[[int, dict[str, Any]], Answer]) -> Iterator[JudgeServer]:
    """A running judge."""
    judge = JudgeServer(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            request = json.loads(self.rfile.read(length))
            number = judge.enter(request, self.headers.get("authorization", ""))
            try:
                answer = judge.script(number, request)
                if answer.stall_s:
                    time.sleep(answer.stall_s)
                body = answer.body
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(answer.status)
                for name, value in {"content-type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                judge.leave()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
