"""The one prompt builder of generate, train, evaluate and infer.

Not here: the chat template, which belongs to the model's tokenizer, and audio. A prompt never holds
category, language or modality: the benchmark's rules forbid metadata as model input.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from mmar_jobs.errors import SettingsError
from mmar_jobs.records import Question

THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"

# What the variants are made of, in this project's own words: the only place with instructions.
BLOCKS: Final = MappingProxyType(
    {
        "base": "Listen to the audio. Think, then answer with exactly one of the choices.",
        "seconds": (
            "Go through the audio second by second: for each second note what begins, what goes "
            "on and what ends, then reason from these notes alone."
        ),
        "strict": (
            "After thinking, reply with the text of one choice, copied word for word, and nothing "
            "else. Never combine choices, never invent one, never answer with a letter or a number "
            "of a choice."
        ),
        "counting": (
            "When the question asks how many, go through the audio from start to end, note each "
            "event with its time, then count the notes."
        ),
        "evidence": "Do not prefer yes over no: look for evidence against each choice.",
        "cues": (
            "In your thinking, first name every cue that you hear (sounds, voices, words, music, "
            "places), then say what each cue means for the question, then compare the choices one "
            "by one."
        ),
    }
)
BLOCKS_BY_VERSION: Final = MappingProxyType(
    {
        "baseline": ("base",),
        "v7": ("base", "seconds"),
        "v8": ("base", "strict", "counting"),
        "v9": ("base", "strict", "counting", "evidence"),
        "v12": ("base", "strict", "counting", "evidence", "cues"),
    }
)
SYSTEM_BY_VERSION: Final = MappingProxyType(
    {
        version: " ".join(BLOCKS[name] for name in names)
        for version, names in BLOCKS_BY_VERSION.items()
    }
)
MAX_CHARACTERS: Final = 8_000
# How this family of tokenizers writes what is no text: turns, sound, images, padding.
MARKER: Final = re.compile(r"<\|\w+\|>")
# What a tokenizer would read as control tokens: such a text would end or fake a turn of the chat.
CONTROL_TOKEN: Final = re.compile(rf"{MARKER.pattern}|</?think>")


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


def system_text(version: str) -> str:
    """The instructions called `version`: a known name, or the text itself, told by its spaces.

    SettingsError for an unknown name, and for a text that is too long or holds control tokens.
    """
    if version in SYSTEM_BY_VERSION:
        return SYSTEM_BY_VERSION[version]
    if not any(letter.isspace() for letter in version.strip()):
        known = ", ".join(SYSTEM_BY_VERSION)
        raise SettingsError(
            f"prompt version {version!r} does not exist; choose one of {known}, or @FILE with a "
            "text of your own"
        )
    control = CONTROL_TOKEN.search(version)
    if control:
        raise SettingsError(f"a prompt text may not hold {control[0]}: it would fake the chat")
    if len(version) > MAX_CHARACTERS:
        raise SettingsError(
            f"a prompt text of {len(version)} characters: at most {MAX_CHARACTERS} are allowed"
        )
    return version


def variant_name(version: str) -> str:
    """A short name of a version: its own, or `custom-<sha8>` of a text."""
    if version in SYSTEM_BY_VERSION:
        return version
    return f"custom-{hashlib.sha256(version.encode()).hexdigest()[:8]}"


def render(question: Question, version: str) -> Prompt:
    """Render one question with the prompt called `version`; see system_text for its errors."""
    choices = "\n".join(f"- {choice}" for choice in question.choices)
    return Prompt(system_text(version), f"{question.text}\nChoices:\n{choices}")


def template_hash(version: str) -> str:
    """SHA-256 that changes whenever the text around a question changes; part of every recipe."""
    probe = Question(id="probe", audio="probe.wav", text="{text}", choices=("{a}", "{b}"))
    return render(probe, version).hash
