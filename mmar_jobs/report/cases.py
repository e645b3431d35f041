"""A handful of held-out questions to listen to, with what two models thought and answered.

Not here: decoding (audio.py) and the page around a player (page.html.j2).
"""

import base64
import io
import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.audio import SAMPLE_RATE_HZ, Clip, ClipReader
from mmar_jobs.errors import MmarError
from mmar_jobs.grade import grade
from mmar_jobs.layout import HELDOUT
from mmar_jobs.questions import audio_root
from mmar_jobs.records import Candidate, Grade, Question
from mmar_jobs.report.findings import Comparison
from mmar_jobs.report.run_view import Run

MAX_CASES: Final = 6
MAX_SOUND_BYTES: Final = 2_000_000  # a third more as base64: two clips of 30 s, or all short ones
MAX_SHOWN_CHARACTERS: Final = 4_000
_NUM_BINS: Final = 160
_MAX_LOST: Final = 2
_MEDIA_TYPES: Final = ((b"RIFF", "audio/wav"), (b"fLaC", "audio/flac"), (b"OggS", "audio/ogg"))


@dataclass(frozen=True)
class Sound:
    """A clip as the page embeds it; `note` says what is played, or why nothing is."""

    data_uri: str
    outline: str  # points of an SVG polygon, 160 x 40
    note: str


@dataclass(frozen=True)
class Reply:
    """One model's greedy answer to a case."""

    thinking: str
    answer: str
    grade: Grade
    num_tokens: int


@dataclass(frozen=True)
class Case:
    """One question, its sound, and both replies."""

    question: Question
    change: str
    before: Reply
    after: Reply
    sound: Sound


def show_cases(run: Run, comparison: Comparison, *, endpoint_url: str | None) -> list[Case]:
    """Up to six cases: questions won and lost first; an unreadable clip is said, not raised."""
    assert run.questions is not None, "a comparison has questions"
    root = audio_root(run.questions, HELDOUT, "")
    clips = ClipReader(root, endpoint_url=endpoint_url, num_kept=1)
    budget = MAX_SOUND_BYTES
    cases = []
    for question, change in pick(run.splits[HELDOUT], comparison):
        sound, num_bytes = _sound(clips, question, budget)
        budget -= num_bytes
        cases.append(
            Case(
                question,
                change,
                _reply(comparison.before_answers.by_id[question.id], question),
                _reply(comparison.after_answers.by_id[question.id], question),
                sound,
            )
        )
    return cases


def pick(questions: Sequence[Question], comparison: Comparison) -> list[tuple[Question, str]]:
    """Up to four questions won, two lost, and where these are too few ones that did not change."""
    kinds: dict[str, list[Question]] = {"won": [], "lost": [], "still wrong": [], "still right": []}
    for question in questions:
        before = comparison.before_grades[question.id] is Grade.CORRECT
        after = comparison.after_grades[question.id] is Grade.CORRECT
        name = (
            ("still right" if before else "won") if after else ("lost" if before else "still wrong")
        )
        kinds[name].append(question)
    ranked = {name: list(_by_turns(members)) for name, members in kinds.items()}
    lost = ranked["lost"][:_MAX_LOST]
    chosen = [(question, "won") for question in ranked["won"][: MAX_CASES - max(1, len(lost))]]
    chosen += [(question, "lost") for question in lost]
    for name in ("still wrong", "still right"):
        chosen += [(question, name) for question in ranked[name]]
    return chosen[:MAX_CASES]


def _by_turns(questions: Iterable[Question]) -> Iterable[Question]:
    """One question of each kind in turn, so that a page shows more than the most frequent kind."""
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        groups.setdefault((question.category, question.sub_category), []).append(question)
    for turn in zip_longest(*(groups[key] for key in sorted(groups))):
        yield from (question for question in turn if question is not None)


def _reply(candidate: Candidate, question: Question) -> Reply:
    thinking = candidate.thinking
    if len(thinking) > MAX_SHOWN_CHARACTERS:
        thinking = f"{thinking[:MAX_SHOWN_CHARACTERS]} […]"
    return Reply(
        thinking=thinking,
        answer=candidate.answer or "",
        grade=grade(candidate, question),
        num_tokens=candidate.num_tokens,
    )


def _sound(clips: ClipReader, question: Question, budget: int) -> tuple[Sound, int]:
    try:
        clip = clips.read(question)
        data = clips.read_bytes(question)
    except MmarError as error:
        return Sound("", "", f"The clip cannot be played: {error}"), 0
    outline = _outline(clip.waveform)
    form = f"{question.audio_s:.1f} s"
    heard = _wav_bytes(clip)
    if len(data) <= len(heard):
        note = f"{form}, the file itself ({clip.file_rate_hz / 1000:g} kHz)"
        media_type = next(
            (kind for magic, kind in _MEDIA_TYPES if data.startswith(magic)), "audio/mpeg"
        )
    else:
        note = f"{form}, as the model hears it (16 kHz mono)"
        data, media_type = heard, "audio/wav"
    if len(data) > budget:
        return Sound("", outline, f"{form}; too large to embed, see {question.audio}"), 0
    encoded = base64.b64encode(data).decode()
    return Sound(f"data:{media_type};base64,{encoded}", outline, note), len(data)


def embed_clip(clip: Clip) -> Sound:
    """A clip as the model hears it, for a page that has no other."""
    form = f"{clip.duration_s:.1f} s, as the model hears it (16 kHz mono)"
    data_uri = f"data:audio/wav;base64,{base64.b64encode(_wav_bytes(clip)).decode()}"
    return Sound(data_uri, _outline(clip.waveform), form)


def _wav_bytes(clip: Clip) -> bytes:
    with io.BytesIO() as buffer:
        with wave.open(buffer, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(SAMPLE_RATE_HZ)
            writer.writeframes((clip.waveform.clip(-1, 1) * 32_767).round().astype("<i2").tobytes())
        return buffer.getvalue()


def _outline(waveform_N: NDArray[np.float32]) -> str:
    """The envelope as polygon points: loudest value of each bin above, its mirror below."""
    bins = np.array_split(np.abs(waveform_N), _NUM_BINS)
    peaks = np.array([part.max() if len(part) else 0.0 for part in bins])
    # The square root keeps soft sounds visible beside loud ones.
    heights = np.sqrt(peaks / max(float(peaks.max()), 1e-9)) * 18 + 0.6
    top = [f"{x},{20 - height:.1f}" for x, height in enumerate(heights)]
    bottom = [f"{x},{20 + height:.1f}" for x, height in enumerate(heights)]
    return " ".join([*top, *reversed(bottom)])


def count_changes(comparison: Comparison) -> Mapping[str, int]:
    """How many held-out questions were won and lost, and how many stayed right or wrong."""
    seen = comparison.verdict
    num_right = round(seen.child_accuracy * seen.n)
    return {
        "won": seen.c,
        "lost": seen.b,
        "still right": num_right - seen.c,
        "still wrong": seen.n - num_right - seen.b,
    }
