"""Look at one question as the stages do: the same prompt, encoder, gates and engine.

Not here: which question and model (subject.py), how it is shown (terminal.py, page.py).

Legend: M mel bins, F mel frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mmar_jobs.audio import Clip, num_audio_tokens
from mmar_jobs.encode import EncodedPrompt, encode_prompt, load_processor
from mmar_jobs.engine import Completion, Request, Sampling
from mmar_jobs.engine.local import LocalEngine, open_local_engine
from mmar_jobs.errors import GateError
from mmar_jobs.grade import grade_answer, parse
from mmar_jobs.inspection.tokens import Piece, labelled, pieces_of
from mmar_jobs.prompt import Prompt, render, system_text, variant_name
from mmar_jobs.qlora.encode import encode_example
from mmar_jobs.recipes import EngineSettings
from mmar_jobs.records import Question

BASE: Final = "base"


@dataclass(frozen=True)
class Subject:
    """One ingested question with its clip, and the models to ask it: base, and an adapter or none.

    `example` is a completion that training really saw, empty where there is none.
    """

    question: Question
    clip: Clip
    base: Path
    adapter: Path | None
    adapter_name: str
    example: str


@dataclass(frozen=True)
class Way:
    """How the question is asked: the prompt, its variants, and the draws beside a greedy answer."""

    version: str
    variants: tuple[str, ...]
    sampling: Sampling
    num_draws: int
    engine: EngineSettings


@dataclass(frozen=True)
class Hearing:
    """The clip in numbers: what the file holds, and what of it reaches the model."""

    duration_s: float
    file_rate_hz: int
    num_channels: int
    num_mel_frames: int
    num_audio_tokens: int
    expected_audio_tokens: int

    @property
    def is_whole(self) -> bool:
        """Whether the model hears all of the clip."""
        return self.num_audio_tokens == self.expected_audio_tokens


@dataclass(frozen=True)
class Reply:
    """One answer of one model; `grade` is empty where the question has no known answer."""

    model: str
    how: str
    pieces: tuple[Piece, ...]
    answer: str
    grade: str
    finish: str
    num_tokens: int
    probability: float  # geometric mean over its tokens


@dataclass(frozen=True)
class Variant:
    """One prompt text beside the others: its length in tokens and the greedy answers to it."""

    name: str
    system: str
    num_prompt_tokens: int
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Labels:
    """One training row: labelled pieces count in the loss; `problem` is what a gate said."""

    source: str
    pieces: tuple[Piece, ...]
    problem: str

    @property
    def num_labels(self) -> int:
        """Tokens that the loss counts."""
        return sum(len(piece.token_ids) for piece in self.pieces if piece.is_label)


@dataclass(frozen=True)
class Inspection:
    """Everything that there is to see."""

    question: Question
    version: str
    hearing: Hearing
    mel_MF: NDArray[np.float32]
    clip: Clip
    prompt: tuple[Piece, ...]
    labels: Labels
    replies: tuple[Reply, ...]
    variants: tuple[Variant, ...]

    @property
    def models(self) -> list[str]:
        """The models that were asked, the base first."""
        return list(dict.fromkeys(reply.model for reply in self.replies))


def look(subject: Subject, way: Way) -> Inspection:
    """Encode the question and ask every model; GateError where a stage would raise it as well."""
    processor = load_processor(subject.base)
    question, clip = subject.question, subject.clip
    prompt = render(question, way.version)
    encoded = encode_prompt(processor, prompt, clip, question_id=question.id)
    replies: list[Reply] = []
    said: dict[str, list[Reply]] = {version: [] for version in way.variants}
    texts: list[tuple[str, str]] = []
    for model, adapter in _models(subject):
        engine = open_local_engine(subject.base, adapter, way.engine)
        asker = _Asker(engine, processor, model, question)
        greedy = asker.ask(prompt, clip, _greedy(way.sampling), ("greedy",))
        texts.append((f"greedy answer of {model}", greedy[0][1].text))
        drawn = tuple(f"draw {n}" for n in range(1, way.num_draws + 1))
        found = greedy + (asker.ask(prompt, clip, way.sampling, drawn) if drawn else [])
        found += asker.ask(prompt, clip.muted(), _greedy(way.sampling), ("greedy, muted",))
        replies += [reply for reply, _ in found]
        for version in way.variants:
            other = render(question, version)
            is_same = other == prompt
            again = (
                greedy if is_same else asker.ask(other, clip, _greedy(way.sampling), ("greedy",))
            )
            said[version].append(again[0][0])
    source, completion = ("example of this run", subject.example) if subject.example else texts[-1]
    return Inspection(
        question=question,
        version=way.version,
        hearing=_hearing(clip, encoded),
        mel_MF=encoded.features_MF.numpy(),
        clip=clip,
        prompt=tuple(pieces_of(processor, encoded.input_ids_S.tolist())),
        labels=labels_of(processor, encoded, completion, question=question, source=source),
        replies=tuple(replies),
        variants=tuple(
            _variant(processor, subject, version, said[version]) for version in way.variants
        ),
    )


def labels_of(
    processor: Any, prompt: EncodedPrompt, completion: str, *, question: Question, source: str
) -> Labels:
    """The training row that `completion` makes, by the functions that train uses."""
    try:
        row = encode_example(
            processor,
            prompt,
            completion,
            question_id=question.id,
            audio_sha256=question.audio_sha256,
            weight=1.0,
        )
    except GateError as error:
        pieces = pieces_of(processor, prompt.input_ids_S.tolist())
        return Labels(source, tuple(pieces), str(error))
    ids = row.input_ids_S.tolist()
    unlabelled = pieces_of(processor, ids[: row.num_prompt_tokens])
    counted = labelled(pieces_of(processor, ids[row.num_prompt_tokens :]))
    return Labels(source, (*unlabelled, *counted), "")


def _models(subject: Subject) -> list[tuple[str, Path | None]]:
    models: list[tuple[str, Path | None]] = [(BASE, None)]
    return models if subject.adapter is None else [*models, (subject.adapter_name, subject.adapter)]


def _greedy(sampling: Sampling) -> Sampling:
    return replace(sampling, temperature=0.0, top_p=1.0, top_k=0)


def _hearing(clip: Clip, encoded: EncodedPrompt) -> Hearing:
    return Hearing(
        duration_s=clip.duration_s,
        file_rate_hz=clip.file_rate_hz,
        num_channels=clip.num_channels,
        num_mel_frames=encoded.features_MF.shape[1],
        num_audio_tokens=encoded.num_audio_tokens,
        expected_audio_tokens=num_audio_tokens(len(clip.waveform)),
    )


def _variant(processor: Any, subject: Subject, version: str, replies: Sequence[Reply]) -> Variant:
    prompt = render(subject.question, version)
    encoded = encode_prompt(processor, prompt, subject.clip, question_id=subject.question.id)
    return Variant(
        name=variant_name(version),
        system=system_text(version),
        num_prompt_tokens=len(encoded.input_ids_S),
        replies=tuple(replies),
    )


@dataclass(frozen=True)
class _Asker:
    """One loaded model."""

    engine: LocalEngine
    processor: Any
    model: str
    question: Question

    def ask(
        self, prompt: Prompt, clip: Clip, sampling: Sampling, names: tuple[str, ...]
    ) -> list[tuple[Reply, Completion]]:
        """One reply a name, which are draws of one request."""
        request = Request(self.question.id, prompt, clip, tuple(range(len(names))))
        [completions] = self.engine.answer([request], sampling, lambda _: None)
        return [
            (self._reply(name, completion), completion)
            for name, completion in zip(names, completions, strict=True)
        ]

    def _reply(self, how: str, completion: Completion) -> Reply:
        answer = parse(completion.text, completion.finish, self.question.choices).answer
        is_known = self.question.answer is not None
        grade = grade_answer(answer, completion.finish, self.question) if is_known else ""
        pieces = pieces_of(self.processor, completion.token_ids, completion.logprobs)
        return Reply(
            model=self.model,
            how=how,
            pieces=tuple(pieces),
            answer=answer or "",
            grade=str(grade),
            finish=completion.finish.value,
            num_tokens=completion.num_tokens,
            probability=math.exp(sum(completion.logprobs) / max(1, completion.num_tokens)),
        )
