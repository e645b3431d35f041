"""The questions that prompts may be tried on: held-out ones with an answer, never the benchmark's.

Not here: asking them (asking.py).
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from mmar_jobs.artifact import Artifact, require_artifact
from mmar_jobs.audio import ClipReader
from mmar_jobs.datasets.fingerprint import Print, fingerprint
from mmar_jobs.datasets.guard import Sounds, find_hits, find_sounds
from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.layout import BENCHMARK, HELDOUT, questions_key
from mmar_jobs.prompting.settings import PromptsCommand
from mmar_jobs.question_file import clips_beside, heard, read_question_file
from mmar_jobs.questions import audio_root, read_split
from mmar_jobs.records import Question
from mmar_jobs.stages import Edges

_BENCHMARK_NAME: Final = re.compile(r"(?<![a-z])mmar(?![a-z])", re.IGNORECASE)


def read_questions(command: PromptsCommand, edges: Edges) -> tuple[list[Question], ClipReader]:
    """The questions to try prompts on, and a reader of their clips.

    DataError for a question of the benchmark, also under another name and encoding, or without an
    answer.
    """
    run = (
        require_artifact(edges.store, questions_key(command.run_id), stage="ingest")
        if command.run_id
        else None
    )
    if command.questions:
        return _from_file(command, run, edges)
    if run is None:
        raise SettingsError("--run-id or --questions is needed: which questions to ask")
    questions = read_split(run, HELDOUT)
    check_allowed(questions, read_split(run, BENCHMARK), {})  # ingest has heard both
    root = audio_root(run, HELDOUT, command.audio_root)
    return questions, ClipReader(root, endpoint_url=command.endpoint_url)


def _from_file(
    command: PromptsCommand, run: Artifact | None, edges: Edges
) -> tuple[list[Question], ClipReader]:
    if run is None and not command.benchmark:
        raise SettingsError(
            "--questions needs --benchmark (or --run-id): a prompt chosen on benchmark questions "
            "would be fitted to them"
        )
    url = command.endpoint_url
    clips = clips_beside(command.questions, command.audio_root, endpoint_url=url)
    rows = read_question_file(command.questions, endpoint_url=url)
    questions, prints = _heard(rows, clips, edges, "checking clips")
    benchmark: list[Question] = []
    theirs: dict[str, Print] = {}
    for rows, reader in _benchmarks(command, run):
        found, made = _heard(rows, reader, edges, "checking the benchmark's clips")
        benchmark += found
        theirs |= made
    check_allowed(questions, benchmark, find_sounds(prints, theirs))
    return questions, clips


def _benchmarks(
    command: PromptsCommand, run: Artifact | None
) -> Iterator[tuple[list[Question], ClipReader]]:
    """Everything that is known to be the benchmark's: the run's, and that of --benchmark."""
    url = command.endpoint_url
    if run is not None:
        root = audio_root(run, BENCHMARK, "")
        yield read_split(run, BENCHMARK), ClipReader(root, endpoint_url=url)
    if command.benchmark:
        rows = read_question_file(command.benchmark, endpoint_url=url)
        yield rows, clips_beside(command.benchmark, "", endpoint_url=url)


def _heard(
    rows: Sequence[Question], clips: ClipReader, edges: Edges, label: str
) -> tuple[list[Question], dict[str, Print]]:
    """The questions with what is known of their clips, and the clips' fingerprints by digest."""
    questions: list[Question] = []
    prints: dict[str, Print] = {}
    with edges.track(label, len(rows)) as advance:
        for row in rows:
            question, clip = heard(row, clips)
            questions.append(question)
            prints[question.audio_sha256] = fingerprint(clip.waveform)
            advance(1)
    return questions, prints


def check_allowed(
    questions: Sequence[Question], benchmark: Sequence[Question], sounds: Sounds
) -> None:
    """Raise DataError for a question that is the benchmark's, or that has no answer.

    `sounds` says which clips sound like one of the benchmark's (datasets/guard.py).
    """
    shared = {
        question.id: f"is of the data set {question.dataset}"
        for question in questions
        if _BENCHMARK_NAME.search(question.dataset)
    }
    shared |= {hit.id: hit.evidence() for hit in reversed(find_hits(questions, benchmark, sounds))}
    if shared:
        first = next(question.id for question in questions if question.id in shared)
        raise DataError(
            f"{len(shared)} of {len(questions)} questions are the benchmark's, first {first}, "
            f"which {shared[first]}: prompts are chosen on held-out questions only"
        )
    unknown = next((question.id for question in questions if question.answer is None), None)
    if unknown is not None:
        raise DataError(f"question {unknown} has no answer to grade against: leave it out")
