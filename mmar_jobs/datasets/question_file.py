"""A question file as `guard` and `doctor` see it: its rows, the lines they stand on, and its clips.

Not here: row formats (mmar.py), what is looked for in rows and clips.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from mmar_jobs.datasets.clip_pool import Examined, Place, examine_each
from mmar_jobs.datasets.fingerprint import Print
from mmar_jobs.datasets.mmar import BadRow, parse_numbered
from mmar_jobs.errors import DataError, SettingsError
from mmar_jobs.progress import Tracker
from mmar_jobs.records import Question
from mmar_jobs.store import join_uri, read_uri, split_uri
from mmar_jobs.store.uri import parse_uri


@dataclass(frozen=True)
class QuestionFile:
    """The rows of one file: `rows` by line number, `bad` ones apart; clips below `audio_root`."""

    uri: str
    lines: list[bytes]
    rows: list[tuple[int, Question]]
    bad: list[BadRow]
    audio_root: str

    @property
    def questions(self) -> list[Question]:
        """The rows that are questions."""
        return [question for _, question in self.rows]

    def require_lines(self) -> None:
        """Raise SettingsError where the file is one JSON array, whose rows have no lines."""
        if self.lines[0].strip().startswith(b"["):
            raise SettingsError(f"{self.uri} is a JSON array: only JSON lines can be written clean")

    def without(self, left_out: Collection[int]) -> bytes:
        """The lines of all good rows but those whose numbers are given, as they stand."""
        kept = [self.lines[number - 1] for number, _ in self.rows if number not in left_out]
        return b"".join(line.rstrip(b"\r\n") + b"\n" for line in kept)


def read_question_file(
    uri: str, *, audio_root: str = "", endpoint_url: str | None = None
) -> QuestionFile:
    """Read a file; its clips lie below `audio_root`, or below its own folder where that is empty.

    Raises DataError where not one row is a question.
    """
    lines = read_uri(uri, endpoint_url=endpoint_url).splitlines()
    rows: list[tuple[int, Question]] = []
    bad: list[BadRow] = []
    for number, row in parse_numbered(lines, Path(uri).stem):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            rows.append((number, row))
    if not rows:
        first = f"; line {bad[0].line_number}: {bad[0].reason}" if bad else ": it is empty"
        raise DataError(f"{uri} holds no question{first}")
    return QuestionFile(uri, lines, rows, bad, _root(uri, audio_root))


def _root(uri: str, audio_root: str) -> str:
    if audio_root:
        return parse_uri(audio_root).uri
    root, key = split_uri(uri)
    folder = key.rpartition("/")[0]
    return join_uri(root, folder) if folder else root


@dataclass(frozen=True)
class Heard:
    """A file's questions with digest and length where the clip was read, and what came of each.

    `examined` is by line number and holds no prints: these go to the caller of `hear` one by one.
    """

    questions: list[Question]
    examined: dict[int, Examined]

    @property
    def problems(self) -> dict[int, str]:
        """Why a clip could not be examined, by line number."""
        return {number: clip.problem for number, clip in self.examined.items() if clip.problem}


def hear(
    file: QuestionFile,
    place: Place,
    track: Tracker,
    listen: Callable[[str, Print], object],
    *,
    jobs: int,
) -> Heard:
    """Examine the clips of all rows; `listen` is given digest and print of each as they come."""
    by_path: dict[str, Examined] = {}
    paths = [question.audio for question in file.questions]
    for path, clip in examine_each(paths, place, track, jobs=jobs):
        if clip.made is not None:
            listen(clip.audio_sha256, clip.made)
        by_path[path] = replace(clip, made=None)
    known = []
    for question in file.questions:
        clip = by_path[question.audio]
        facts = {"audio_s": clip.facts.duration_s} if clip.facts else {}
        known.append(question.model_copy(update={"audio_sha256": clip.audio_sha256, **facts}))
    return Heard(known, {number: by_path[row.audio] for number, row in file.rows})
