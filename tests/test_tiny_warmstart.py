"""How the tiny model is taught."""

from pathlib import Path

import numpy as np
import pytest

from mmar_jobs.prompt import render
from mmar_jobs.records import Question
from mmar_jobs.tiny.exam import is_right
from mmar_jobs.tiny.lessons import END_OF_TURN, IGNORED, Teacher, prompt_batch, training_batch
from mmar_jobs.tiny.warmstart import CARELESS_PERCENT, MIX, training_lessons

QUESTION = Question(
    id="q", audio="q.wav", text="How many sounds are there?", choices=("two", "four"), answer="two"
)


@pytest.fixture(scope="module")
def teacher(model_folder: Path) -> Teacher:
    """A teacher with the tiny model's processor."""
    return Teacher(model_folder)


def test_a_lesson_is_what_the_processor_makes(teacher: Teacher) -> None:
    """Prompt ids and features equal those of the processor's own call on text and audio."""
    waveform = np.sin(np.arange(40_123) / 20).astype(np.float32)
    lesson = teacher.lesson(QUESTION, (len(waveform), teacher.mel(waveform)))
    text = teacher.processor.apply_chat_template(
        render(QUESTION, "baseline").messages(), add_generation_prompt=True, tokenize=False
    )
    expected = teacher.processor(text=[text], audio=[waveform], return_tensors="pt")
    batch = prompt_batch([lesson])
    assert expected["input_ids"].tolist() == batch["input_ids"].tolist()
    assert expected["input_features"].shape == batch["input_features"].shape
    assert np.allclose(expected["input_features"], batch["input_features"], atol=1e-3)


def test_only_completions_are_learnt(teacher: Teacher) -> None:
    """Labels cover the thinking, the answer and the end of the turn, and no token of the prompt."""
    waveform = np.zeros(16_000, np.float32)
    heard = (len(waveform), teacher.mel(waveform))
    trace = "<think>low tone. guess.</think>\n\ntwo"
    batch = training_batch([teacher.lesson(QUESTION, heard, trace)])
    learnt = [token for token in batch["labels"][0].tolist() if token != IGNORED]
    assert trace + END_OF_TURN == teacher.processor.tokenizer.decode(learnt)


def test_muted_features_are_those_of_silence(teacher: Teacher) -> None:
    """The muted control feeds exactly what a clip of zeros would give."""
    waveform = np.sin(np.arange(16_000) / 9).astype(np.float32)
    lesson = teacher.lesson(QUESTION, (len(waveform), teacher.mel(waveform)))
    silence = teacher.mel(np.zeros(16_000, np.float32))
    assert np.allclose(silence, prompt_batch([lesson], muted=True)["input_features"][0])


def test_most_traces_of_careless_families_guess(teacher: Teacher) -> None:
    """The mix teaches listening everywhere and reasoning only in some of the traces."""
    lessons = training_lessons(teacher, seed=0, num_clips=60)
    traces = [teacher.processor.tokenizer.decode(list(x.completion_ids)) for x in lessons]
    guesses = [" guess.</think>" in trace for trace in traces]
    assert set(MIX) > set(CARELESS_PERCENT)
    assert 0.3 < sum(guesses) / len(guesses) < 0.75
    careful = [
        x for x, guess in zip(zip(lessons, traces, strict=True), guesses, strict=True) if not guess
    ]
    assert all(is_right(x.question, t.removesuffix(END_OF_TURN)) for x, t in careful)


def test_an_answer_counts_only_after_thinking() -> None:
    """The exam wants the format and the whole answer."""
    assert is_right(QUESTION, "<think>low tone.</think>\n\ntwo")
    assert not is_right(QUESTION, "<think>low tone.</think>\n\ntwo four")
    assert not is_right(QUESTION, "two")
    assert not is_right(QUESTION, "low tone.</think>\n\ntwo")
