"""The questions that prompts may be tried on: held-out ones with an answer, never the benchmark's.

Not here: asking them (asking.py).
"""

import re
from collections.abc import Sequence
from typing import Final

from mmar_jobs.artifact import Artifact, require_artifact
from mmar_jobs.audio import ClipReader
from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.layout import BENCHMARK, HELDOUT, questions_key
from mmar_jobs.prompting.settings import PromptsCommand
from mmar_jobs.question_file import clips_beside, heard, read_question_file
from mmar_jobs.questions import audio_root, read_split
from mmar_jobs.records import Question
from mmar_jobs.split import find_shared
from mmar_jobs.store import Store

_BENCHMARK_NAME: Final = re.compile(r"(?<![a-z])mmar(?![a-z])", re.IGNORECASE)


def read_questions(command: PromptsCommand, store: Store) -> tuple[list[Question], ClipReader]:
    """The questions to try prompts on, and a reader of their clips.

    DataError for a question of the benchmark or without an answer.
    """
    run = (
        require_artifact(store, questions_key(command.run_id), stage="ingest")
        if command.run_id
        else None
    )
    if not command.questions:
        if run is None:
            raise SettingsError("--run-id or --questions is needed: which questions to ask")
        root = audio_root(run, HELDOUT, command.audio_root)
        clips = ClipReader(root, endpoint_url=command.endpoint_url)
        questions = read_split(run, HELDOUT)
    else:
        clips = clips_beside(
            command.questions, command.audio_root, endpoint_url=command.endpoint_url
        )
        rows = read_question_file(command.questions, endpoint_url=command.endpoint_url)
        questions = [heard(question, clips) for question in rows]
    check_allowed(questions, _benchmark(command, run))
    return questions, clips


def _benchmark(command: PromptsCommand, run: Artifact | None) -> list[Question]:
    """Everything that is known to be the benchmark's."""
    if run is None and not command.benchmark:
        raise SettingsError(
            "--questions needs --benchmark (or --run-id): a prompt chosen on benchmark questions "
            "would be fitted to them"
        )
    known = read_split(run, BENCHMARK) if run else []
    if command.benchmark:
        known += read_question_file(command.benchmark, endpoint_url=command.endpoint_url)
    return known


def check_allowed(questions: Sequence[Question], benchmark: Sequence[Question]) -> None:
    """Raise DataError for a question that is the benchmark's, or that has no answer."""
    named = {
        question.id: f"is of the data set {question.dataset}"
        for question in questions
        if _BENCHMARK_NAME.search(question.dataset)
    }
    shared = find_shared(questions, benchmark) | named
    if shared:
        first, evidence = next(iter(shared.items()))
        raise DataError(
            f"{len(shared)} of {len(questions)} questions are the benchmark's, first {first}, "
            f"which {evidence}: prompts are chosen on held-out questions only"
        )
    unknown = next((question.id for question in questions if question.answer is None), None)
    if unknown is not None:
        raise DataError(f"question {unknown} has no answer to grade against: leave it out")
