"""The one prompt builder of generate, train, evaluate and infer.

Not here: the chat template, which belongs to the model's tokenizer, and audio. A prompt never holds
category, language or modality: the benchmark's rules forbid metadata as model input.
"""

import hashlib
import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from mmar_jobs.errors import SettingsError
from mmar_jobs.records import Question

THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"

_BASE: Final = "Listen to the audio. Think, then answer with exactly one of the choices."
_STRICT: Final = (
    "After thinking, reply with the text of one choice, copied word for word, and nothing else. "
    "Never combine choices, never invent one, never answer with a letter or a number of a choice."
)
_COUNTING: Final = (
    "When the question asks how many, go through the audio from start to end, note each event with "
    "its time, then count the notes. Do not prefer yes over no: look for evidence against each "
    "choice."
)
_CUES: Final = (
    "In your thinking, first name every cue that you hear (sounds, voices, words, music, places), "
    "then say what each cue means for the question, then compare the choices one by one."
)

SYSTEM_BY_VERSION: Final = MappingProxyType(
    {
        "v7": _BASE,
        "v8": f"{_BASE} {_STRICT}",
        "v9": f"{_BASE} {_STRICT} {_COUNTING}",
        "v12": f"{_BASE} {_STRICT} {_COUNTING} {_CUES}",
    }
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text of one prompt; the clip stands before the user's text."""

    system: str
    user: str

    @property
    def hash(self) -> str:
        """SHA-256 over both texts: equal hashes mean that two stages asked the same."""
        return hashlib.sha256(json.dumps([self.system, self.user]).encode()).hexdigest()

    def messages(self) -> list[dict[str, Any]]:
        """Chat messages in the form that the processor's chat template reads."""
        return [
            {"role": "system", "content": [{"type": "text", "text": self.system}]},
            {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": self.user}]},
        ]


def render(question: Question, version: str) -> Prompt:
    """Render one question with the prompt text called `version`; SettingsError when unknown."""
    if version not in SYSTEM_BY_VERSION:
        known = ", ".join(SYSTEM_BY_VERSION)
        raise SettingsError(f"prompt version {version!r} does not exist; choose one of {known}")
    choices = "\n".join(f"- {choice}" for choice in question.choices)
    return Prompt(SYSTEM_BY_VERSION[version], f"{question.text}\nChoices:\n{choices}")


def template_hash(version: str) -> str:
    """SHA-256 that changes whenever the text around a question changes; part of every recipe."""
    probe = Question(id="probe", audio="probe.wav", text="{text}", choices=("{a}", "{b}"))
    return render(probe, version).hash
