"""Fakes of the outside world, and builders of the small things that tests are about.

Not here: mocks. A fake keeps the promises of the real thing, and breaks one only where told to.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import structlog
from numpy.typing import NDArray
from structlog.testing import CapturingLogger

from mmar_jobs.artifact import file_sha256
from mmar_jobs.audio import SAMPLE_RATE_HZ, canary_clip, num_audio_tokens
from mmar_jobs.base_model import model_digest
from mmar_jobs.engine import Completion, Request, Sampling
from mmar_jobs.grade import parse
from mmar_jobs.identity import Canary, ModelIdentity
from mmar_jobs.layout import ADAPTER_WEIGHTS
from mmar_jobs.progress import Advance, no_bar
from mmar_jobs.prompt import render
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Candidate, Finish, Question
from mmar_jobs.stages import Edges, OpenEngine
from mmar_jobs.store import Store, open_store

# What a fake model says to a request's draw; the identity tells one model from another.
Script = Callable[[Request, int, ModelIdentity], str]
PROMPT_VERSION = "v9"
# Runs a command that must fail with this code and one line, which it returns.
Fails = Callable[..., str]


def think(answer: str, thinking: str = "I hear it.") -> str:
    """A completion in the model's format."""
    return f"<think>{thinking}</think>{answer}"


@dataclass
class FakeEngine:
    """Answers by a script; `asked` logs (question id, draw, muted) in order.

    `audio_tokens` replaces the right number of them, `num_lost` drops that many siblings of each
    request, and questions in `broken` get errors instead of answers.
    """

    identity: ModelIdentity
    script: Script
    audio_tokens: int | None = None
    num_lost: int = 0
    broken: frozenset[str] = frozenset()
    finish: Finish = Finish.STOP
    canary_shift: float = 0.0
    prompt_opens_thinking: bool = False
    asked: list[tuple[str, int, bool]] = field(default_factory=list)

    def canary(self) -> Canary:
        """Eight tokens that depend on the identity alone."""
        digest = bytes.fromhex(self.identity.hash)[:8]
        logprobs = tuple(self.canary_shift - byte / 256 for byte in digest)
        return Canary(token_ids=tuple(digest), logprobs=logprobs)

    def answer(
        self, requests: Sequence[Request], sampling: Sampling, on_answer: Callable[[int], None]
    ) -> list[list[Completion]]:
        """See Engine.answer."""
        answers = []
        for request in requests:
            completions = [self._complete(request, draw) for draw in request.draws]
            answers.append(completions[: len(completions) - self.num_lost])
            on_answer(len(request.draws))
        return answers

    def _complete(self, request: Request, draw: int) -> Completion:
        self.asked.append((request.question_id, draw, not request.clip.waveform.any()))
        if request.question_id in self.broken:
            return Completion("", Finish.ERROR, (), (), 0, "503 from the server")
        text = self.script(request, draw, self.identity)
        right = num_audio_tokens(len(request.clip.waveform))
        heard = right if self.audio_tokens is None else self.audio_tokens
        num_tokens = len(text.split())
        return Completion(text, self.finish, tuple(range(num_tokens)), (-0.5,) * num_tokens, heard)


@dataclass
class FakeOpener:
    """Opens fake engines that say of themselves what lies in the folders; `engines` logs them."""

    script: Script
    options: dict[str, Any] = field(default_factory=dict)
    engines: list[FakeEngine] = field(default_factory=list)

    def __call__(self, base: Path, adapter: Path | None, chosen: EngineSettings) -> FakeEngine:
        """See OpenEngine."""
        adapter_digest = file_sha256(adapter / ADAPTER_WEIGHTS) if adapter else None
        identity = ModelIdentity(base_digest=model_digest(base), adapter_digest=adapter_digest)
        self.engines.append(FakeEngine(identity, self.script, **self.options))
        return self.engines[-1]


class Track:
    """A tracker that counts, and can stop a stage after some advances as SIGTERM does."""

    def __init__(self, *, raise_at: int | None = None, error: Exception | None = None) -> None:
        self.labels: list[str] = []
        self.done: dict[str, int] = {}
        self.totals: dict[str, int] = {}
        self._left = raise_at
        self._error = error

    @contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Advance]:
        """See Tracker."""
        self.labels.append(label)
        self.totals[label] = total
        self.done[label] = 0

        def advance(num_done: int) -> None:
            self.done[label] += num_done
            if self._left is not None and self._error is not None:
                self._left -= 1
                if self._left <= 0:
                    raise self._error

        yield advance


def edges_of(
    store: Store | Path, opener: OpenEngine, *, track: Any = no_bar
) -> tuple[Edges, CapturingLogger]:
    """Edges over a store, and the logger that holds what the stages said."""
    if isinstance(store, Path):
        store = open_store(str(store))
    said = CapturingLogger()
    log = structlog.wrap_logger(said, processors=[])
    return Edges(store=store, open_engine=opener, track=track, log=log), said


def make_question(key: str = "q1", **values: Any) -> Question:
    """An ingested question about a one-second clip; its answer is the first choice."""
    known: dict[str, Any] = {
        "id": key,
        "audio": f"audio/{key}.wav",
        "text": "How many beeps are there?",
        "choices": ("one", "two", "three"),
        "answer": "one",
        "category": "Signal",
        "audio_sha256": "0" * 64,
        "audio_s": 1.0,
    }
    return Question.model_validate(known | values)


def make_candidate(
    question: Question, draw: int = 0, answer: str | None = None, **values: Any
) -> Candidate:
    """What a model that hears the clip in full answers; None gives the question's own answer."""
    completion = values.pop("completion", think(answer or question.answer or "?", f"draw {draw}"))
    finish = values.pop("finish", Finish.STOP)
    parsed = parse(completion, finish, question.choices)
    known: dict[str, Any] = {
        "question_id": question.id,
        "draw": draw,
        "completion": completion,
        "thinking": parsed.thinking,
        "answer": parsed.answer,
        "finish": finish,
        "num_tokens": 12,
        "logprob_sum": -3.0,
        "audio_tokens": num_audio_tokens(round(question.audio_s * SAMPLE_RATE_HZ)),
        "prompt_hash": render(question, PROMPT_VERSION).hash,
        "model_hash": "m" * 64,
        "seed": 0,
    }
    return Candidate.model_validate(known | values)


def make_request(question: Question, draws: Sequence[int] = (0,), clip: Any = None) -> Request:
    """A request for some draws of a question, about the canary's sound unless told otherwise."""
    prompt = render(question, PROMPT_VERSION)
    return Request(question.id, prompt, canary_clip() if clip is None else clip, tuple(draws))


def tone(
    *, seconds: float = 1.0, rate_hz: int = 16_000, pitch_hz: float = 440.0, num_channels: int = 1
) -> NDArray[np.float32]:
    """A sine tone, (N, C) float32; every channel but the first is half as loud."""
    time_N = np.arange(round(seconds * rate_hz)) / rate_hz
    gains_C = np.array([1.0] + [0.5] * (num_channels - 1))
    sound_NC = 0.4 * np.sin(2 * np.pi * pitch_hz * time_N)[:, None] * gains_C
    return sound_NC.astype(np.float32)


def sound_bytes(
    frames_NC: NDArray[np.float32], rate_hz: int, format_: str = "WAV", subtype: str | None = None
) -> bytes:
    """A sound file of a format that libsndfile writes: WAV, FLAC, OGG, MP3."""
    buffer = io.BytesIO()
    soundfile.write(buffer, frames_NC, rate_hz, format=format_, subtype=subtype)
    return buffer.getvalue()


def fake_nvidia_smi(folder: Path, gpus: Sequence[str], utilization: Sequence[str]) -> None:
    """Write an nvidia-smi into `folder`: rows of GPUs, then rows of their utilization for ever."""
    script = folder / "nvidia-smi"
    script.write_text(
        "#!/bin/bash\n"
        f"gpus='{chr(10).join(gpus)}'\n"
        f"utilization='{chr(10).join(utilization)}'\n"
        'if [[ "$*" != *-lms* ]]; then echo "$gpus"; exit; fi\n'
        'while echo "$utilization"; do sleep 0.05; done\n'
    )
    script.chmod(0o755)
