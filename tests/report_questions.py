"""The size of a fabricated run, its questions with real sound, and answers to them.

Not here: artifacts (report_run.py) and a model; right and wrong are drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmar_jobs.audio import num_audio_tokens
from mmar_jobs.manifest import sha256
from mmar_jobs.prompt import render
from mmar_jobs.questions import Reject
from mmar_jobs.records import Candidate, Finish, Question
from mmar_jobs.tiny.dice import Dice
from mmar_jobs.tiny.questions import draw_clip_with_questions
from mmar_jobs.tiny.world import Clip, wav_bytes


@dataclass(frozen=True)
class Plan:
    """How large the run is and how right each model is, in per cent; the first is the base."""

    accuracies: Sequence[int] = (46, 58, 66, 65)
    num_clips: int = 10
    num_draws: int = 8
    muted_accuracy: int = 30
    last_stage: str = "submit"
    has_sound: bool = True
    twist: Question | None = None
    rejects: Sequence[Reject] = ()


def make_questions(audio_root: Path, split: str, plan: Plan) -> list[Question]:
    """Two questions a clip, and the clips as WAV files below `audio_root`."""
    made = []
    for index in range(plan.num_clips):
        dice = Dice("report", split, index)
        events, asked = draw_clip_with_questions(dice, num_questions=2)
        rate_hz, channels = dice.one_of((8_000, 16_000, 44_100)), dice.between(1, 2)
        data = wav_bytes(Clip(f"{split}-{index}", events, rate_hz, channels))
        path = f"{split}/{index:03d}.wav"
        if plan.has_sound:
            (audio_root / split).mkdir(parents=True, exist_ok=True)
            (audio_root / path).write_bytes(data)
        made += [
            Question(
                id=f"{split}-{index:03d}-{place}",
                audio=path,
                text=one.text,
                choices=one.choices,
                answer=one.answer,
                modality="sound",
                category=one.category,
                sub_category=one.sub_category,
                audio_sha256=sha256(data),
                audio_s=round((len(data) - 44) / (2 * channels * rate_hz), 3),
            )
            for place, one in enumerate(asked)
        ]
    if plan.twist is not None and split == "heldout":
        made = [_with_sound(plan.twist, made[0]), *made]
    return made


def _with_sound(twist: Question, other: Question) -> Question:
    sound = {"audio": other.audio, "audio_sha256": other.audio_sha256, "audio_s": other.audio_s}
    return twist.model_copy(update=sound)


def answer(question: Question, accuracy: int, *, draw: int, model_hash: str, key: str) -> Candidate:
    """One candidate: right with `accuracy` per cent, sometimes cut off or not parsed.

    The dice do not know the model, so a better model is right wherever a worse one was, but for a
    few questions that the key turns around.
    """
    luck = Dice("luck", question.id, draw).below(100) + Dice(key, question.id, draw).between(-9, 9)
    fate = Dice("fate", key, question.id, draw)
    wrong = [choice for choice in question.choices if choice != question.answer]
    said = question.answer if luck < accuracy else fate.one_of(wrong)
    steps = [f"{fate.one_of(('soft', 'loud'))} {fate.one_of(('low', 'mid', 'high'))} sound"]
    steps *= fate.between(2, 6)
    thinking = f"I hear {', then '.join(steps)}. Asked: {question.text} That makes it {said}."
    finish, completion = Finish.STOP, f"<think>{thinking}</think>\n\n{said}"
    if fate.below(25) == 0:
        finish, completion, said = Finish.LENGTH, f"<think>{thinking}", None
    elif fate.below(25) == 0:
        completion, said = f"<think>{thinking}</think>\n\nA or B", None
    return Candidate(
        question_id=question.id,
        draw=draw,
        completion=completion,
        thinking=thinking,
        answer=said,
        finish=finish,
        num_tokens=len(completion.split()) + fate.below(6),
        logprob_sum=-4.2,
        audio_tokens=num_audio_tokens(round(question.audio_s * 16_000)),
        prompt_hash=render(question, "v9").hash,
        model_hash=model_hash,
        seed=0,
    )
