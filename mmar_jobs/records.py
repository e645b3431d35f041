"""The records that flow between stages; pure data, no IO.

Not here: how rows of foreign formats become a Question (datasets/), how records are stored
(artifact.py). All records are frozen, refuse unknown fields and serialise to one JSON line.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MIN_CHOICES = 2
MAX_CHOICES = 26


def canonical(text: str) -> str:
    """Case- and whitespace-insensitive form under which two choices count as the same."""
    return " ".join(text.split()).casefold()


class Record(BaseModel):
    """Base of every record: frozen, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Question(Record):
    """One multiple-choice question about one clip.

    `audio` is a path relative to the audio root, or a URI. `answer` is one of `choices` verbatim,
    or None where unknown. `audio_sha256` and `audio_s` (seconds) are filled by the ingest stage,
    which decodes every clip; later stages refuse questions without them.
    """

    id: Annotated[str, Field(min_length=1, max_length=200)]
    audio: Annotated[str, Field(min_length=1)]
    text: Annotated[str, Field(min_length=1)]
    choices: tuple[str, ...]
    answer: str | None = None
    dataset: str = ""
    modality: str = ""
    category: str = ""
    sub_category: str = ""
    language: str | None = None
    source_ids: tuple[str, ...] = ()
    audio_sha256: str = ""
    audio_s: float = 0.0

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if not MIN_CHOICES <= len(self.choices) <= MAX_CHOICES:
            raise ValueError(
                f"needs {MIN_CHOICES} to {MAX_CHOICES} choices, has {len(self.choices)}"
            )
        if any(not choice.strip() for choice in self.choices):
            raise ValueError("has an empty choice")
        if len({canonical(choice) for choice in self.choices}) != len(self.choices):
            raise ValueError(f"has duplicate choices: {list(self.choices)}")
        if self.answer is not None and self.answer not in self.choices:
            raise ValueError(f"its answer {self.answer!r} is not among its choices")
        return self


class Finish(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


class Candidate(Record):
    """One sampled completion of one question, verbatim, with what is needed to check it later.

    `draw` counts the candidates of a question from 0. `audio_tokens` is the number of audio tokens
    the engine really put into the prompt; `logprob_sum` is in nats over the completion's tokens,
    None where nobody asked for it.
    `error` is the engine's message when `finish` is ERROR; such a candidate is never an answer.
    `drawn_tokens` has every token with its log-probability (drawn_tokens.py); empty in answers that
    nobody learns from.
    """

    question_id: str
    draw: Annotated[int, Field(ge=0)]
    completion: str
    thinking: str
    answer: str | None
    finish: Finish
    num_tokens: Annotated[int, Field(ge=0)]
    logprob_sum: float | None
    audio_tokens: Annotated[int, Field(ge=0)]
    prompt_hash: str
    model_hash: str
    seed: int
    error: str = ""
    drawn_tokens: str = ""


class Grade(StrEnum):
    """What a candidate is worth; only CORRECT and WRONG are valid attempts of a rate."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TRUNCATED = "truncated"
    ERROR = "error"


class Zone(StrEnum):
    """Where a question lies for the model that tried it, by its rate of correct valid attempts."""

    UNDECIDED = "undecided"  # too few valid attempts to say
    UNSOLVED = "unsolved"  # rate 0
    HARD = "hard"
    MEDIUM = "medium"
    EASY = "easy"
    MASTERED = "mastered"  # rate 1


class Example(Record):
    """One training row: train renders its prompt again, which must hash to `prompt_hash`."""

    question_id: str
    draw: int
    completion: str
    weight: Annotated[float, Field(gt=0)]
    zone: Zone
    rate: Annotated[float, Field(ge=0, le=1)]
    num_tokens: int
    audio_sha256: str
    prompt_hash: str
    model_hash: str


class PolicyExample(Example):
    """One candidate of a group, right or wrong, as a policy gradient learns from it.

    `advantage` is its reward over its siblings'. `drawn_tokens` are trained in place of the text.
    `weight` is what plain fine-tuning beside it gives the completion, mostly 0.
    """

    weight: Annotated[float, Field(ge=0)]
    finish: Finish
    reward: float
    advantage: float
    drawn_tokens: Annotated[str, Field(min_length=1)]


class Prediction(Record):
    """One answer for the submission. `votes` counts the answers of all samples by choice text."""

    id: str
    thinking_prediction: str
    answer_prediction: str
    votes: dict[str, int]
