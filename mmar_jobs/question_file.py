"""Questions straight from a file, for commands that look at them without a run.

Not here: the questions of a run (questions.py), and splitting or guarding them (stages/ingest.py).
"""

from collections.abc import Sequence
from pathlib import Path

from mmar_jobs.audio import SAMPLE_RATE_HZ, Clip, ClipReader, decode
from mmar_jobs.datasets.mmar import BadRow, parse_questions
from mmar_jobs.errors import DataError
from mmar_jobs.manifest import sha256
from mmar_jobs.prompt import CONTROL_TOKEN
from mmar_jobs.records import Question
from mmar_jobs.store import join_uri, read_uri, split_uri


def read_question_file(uri: str, *, endpoint_url: str | None = None) -> list[Question]:
    """Every question of a JSONL file; a bad row is a DataError that names its line."""
    questions: list[Question] = []
    for row in parse_questions(
        read_uri(uri, endpoint_url=endpoint_url).splitlines(), Path(uri).name
    ):
        if isinstance(row, BadRow):
            raise DataError(f"{uri} line {row.line_number}: {row.reason}")
        questions.append(row)
    if not questions:
        raise DataError(f"{uri} holds no question: give a file of questions, one JSON a line")
    return questions


def clips_beside(uri: str, audio_root: str, *, endpoint_url: str | None = None) -> ClipReader:
    """A reader of the clips that lie beside the file at `uri`, or below `audio_root`."""
    if not audio_root:
        root, key = split_uri(uri)
        folder = key.rpartition("/")[0]
        audio_root = join_uri(root, folder) if folder else root
    return ClipReader(audio_root, endpoint_url=endpoint_url)


def heard(question: Question, clips: ClipReader) -> tuple[Question, Clip]:
    """The question with its clip's digest and length in seconds, as ingest would fill them in."""
    found = CONTROL_TOKEN.search("\n".join([question.text, *question.choices]))
    if found:
        raise DataError(
            f"question {question.id}: its text holds the control token {found[0]}: remove it"
        )
    data = clips.read_bytes(question)
    clip = decode(data, question.audio)
    facts = {"audio_sha256": sha256(data), "audio_s": len(clip.waveform) / SAMPLE_RATE_HZ}
    return question.model_copy(update=facts), clip


def find_question(questions: Sequence[Question], question_id: str, where: str) -> Question:
    """The question called `question_id`; a DataError says which ids there are."""
    found = next((question for question in questions if question.id == question_id), None)
    if found is None:
        shown = ", ".join(question.id for question in questions[:3])
        raise DataError(f"{where} has no question {question_id}: its first ids are {shown}")
    return found
