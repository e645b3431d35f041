"""What is to be said of a question file and its clips: measures, what is odd, what cannot be used.

Pure. Not here: reading files and clips (question_file.py), words and pictures (doctor_command.py,
doctor_page.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final

import numpy as np

from mmar_jobs.analysis.signs import script_counts
from mmar_jobs.audio import PADDING_S
from mmar_jobs.datasets.clip_facts import ClipFacts, suspicious, unusable
from mmar_jobs.datasets.copies import Copy, find_copies
from mmar_jobs.datasets.fingerprint import Print
from mmar_jobs.datasets.question_file import Heard, QuestionFile
from mmar_jobs.progress import Tracker
from mmar_jobs.records import Question, Record

NO_LANGUAGE: Final = "not named"
NO_SCRIPT: Final = "none"


class Kind(StrEnum):
    """What may be wrong with a row; the first two make it unusable."""

    NO_QUESTION = "no question"
    UNUSABLE = "unusable clip"
    CLIPPED = "clipped"
    MOSTLY_SILENT = "mostly silent"
    QUIET = "quiet"
    OFFSET = "DC offset"
    SAME_FILE = "same file"
    COPY = "near copy"


FATAL: Final = frozenset({Kind.NO_QUESTION, Kind.UNUSABLE})


class Remark(Record):
    """One thing to know about one line of the file."""

    line_number: int
    kind: Kind
    text: str


class Measure(Record):
    """A quantity over all clips: its name with the unit, and how it is spread."""

    name: str
    least: float
    median: float
    percentile_95: float
    most: float


class Diagnosis(Record):
    """A question file and its clips; counts are of rows or, where they say so, of clips.

    `num_clips` are distinct files that could be examined, `total_s` their length, `audio_tokens`
    what a model hears of them. `languages` counts questions by the language that their row names,
    `scripts` by the script of most of their letters: languages that share one are not told apart.
    """

    uri: str
    num_rows: int
    num_clips: int
    total_s: float
    audio_tokens: int
    measures: tuple[Measure, ...]
    file_rates_hz: dict[int, int]
    channels: dict[int, int]
    languages: dict[str, int]
    scripts: dict[str, int]
    num_choices: dict[int, int]
    remarks: tuple[Remark, ...]

    @property
    def counts(self) -> dict[Kind, int]:
        """Remarks by kind, in the order of Kind."""
        found = Counter(remark.kind for remark in self.remarks)
        return {kind: found[kind] for kind in Kind if found[kind]}

    @property
    def ranked(self) -> list[Remark]:
        """What cannot be used first, then the rarest kinds: many quiet clips hide nothing else."""
        counts = self.counts
        return sorted(
            self.remarks,
            key=lambda one: (one.kind not in FATAL, counts[one.kind], one.kind, one.line_number),
        )

    @property
    def num_unusable(self) -> int:
        """Lines that nobody can train on or be asked."""
        return len({remark.line_number for remark in self.remarks if remark.kind in FATAL})


def diagnose(
    file: QuestionFile, heard: Heard, copies: Mapping[str, tuple[str, str]], *, max_clip_s: float
) -> Diagnosis:
    """Put together what `heard` measured; `copies` as of nearest_copies, by digest."""
    clips = distinct_clips(heard)
    languages = Counter(question.language or NO_LANGUAGE for question in file.questions)
    scripts = Counter(_script(question) for question in file.questions)
    remarks = [
        Remark(line_number=row.line_number, kind=Kind.NO_QUESTION, text=row.reason)
        for row in file.bad
    ]
    remarks += _clip_remarks(file, heard, copies, max_clip_s)
    return Diagnosis(
        uri=file.uri,
        num_rows=len(file.rows) + len(file.bad),
        num_clips=len(clips),
        total_s=sum(clip.duration_s for clip in clips),
        audio_tokens=sum(clip.audio_tokens for clip in clips),
        measures=tuple(_measures(clips)),
        file_rates_hz=_counted(clip.file_rate_hz for clip in clips),
        channels=_counted(clip.num_channels for clip in clips),
        languages=dict(languages.most_common()),
        scripts=dict(scripts.most_common()),
        num_choices=_counted(len(question.choices) for question in file.questions),
        remarks=tuple(sorted(remarks, key=lambda remark: remark.line_number)),
    )


def distinct_clips(heard: Heard) -> list[ClipFacts]:
    """The measurements of each file that could be examined, once."""
    found = (clip.facts for clip in heard.examined.values() if clip.facts is not None)
    return list({facts.audio_sha256: facts for facts in found}.values())


def nearest_copies(prints: Mapping[str, Print], track: Tracker) -> dict[str, tuple[str, str]]:
    """For each clip that sounds like an earlier one, by digest: that one and the evidence.

    Digests are compared in the order of `prints`; of several the one that shares most is named.
    """
    best: dict[str, Copy] = {}
    for copy in find_copies(prints, track):
        known = best.get(copy.second)
        if known is None or copy.share > known.share:
            best[copy.second] = copy
    return {
        name: (
            copy.first,
            f"{copy.match.stretch_s:.1f} s from {copy.match.second_s:.1f} s on",
        )
        for name, copy in best.items()
    }


def _clip_remarks(
    file: QuestionFile, heard: Heard, copies: Mapping[str, tuple[str, str]], max_clip_s: float
) -> Iterator[Remark]:
    """About each clip once, at the first line that names it; about unusable ones at every line."""
    first_line: dict[str, tuple[int, str]] = {}
    seen: set[str] = set()
    for number, row in file.rows:
        clip = heard.examined[number]
        facts = clip.facts
        problem = clip.problem
        if facts is not None and (why := _problem(facts, max_clip_s)):
            problem = f"{row.audio} {why}"
        if problem:
            yield Remark(line_number=number, kind=Kind.UNUSABLE, text=problem)
        if facts is None or row.audio in seen:
            continue
        seen.add(row.audio)
        if clip.audio_sha256 in first_line:
            line, path = first_line[clip.audio_sha256]
            text = f"{row.audio} has the bytes of {path} (line {line})"
            yield Remark(line_number=number, kind=Kind.SAME_FILE, text=text)
            continue
        first_line[clip.audio_sha256] = (number, row.audio)
        if not problem:
            for kind, text in suspicious(facts).items():
                yield Remark(line_number=number, kind=Kind(kind), text=f"{row.audio}: {text}")
        original = copies.get(clip.audio_sha256)
        if original is not None and original[0] in first_line:
            line, path = first_line[original[0]]
            text = f"{row.audio}: {original[1]} sound like {path} (line {line})"
            yield Remark(line_number=number, kind=Kind.COPY, text=text)


def _problem(facts: ClipFacts, max_clip_s: float) -> str:
    if facts.duration_s > max_clip_s + PADDING_S:
        return f"lasts {facts.duration_s:.1f} s, at most {max_clip_s:g} s are used"
    return unusable(facts)


def _measures(clips: Sequence[ClipFacts]) -> Iterator[Measure]:
    quantities: tuple[tuple[str, Callable[[ClipFacts], float]], ...] = (
        ("length, s", lambda clip: clip.duration_s),
        ("audio tokens", lambda clip: clip.audio_tokens),
        ("level (RMS), dBFS", lambda clip: clip.rms_dbfs),
        ("peak, dBFS", lambda clip: clip.peak_dbfs),
        ("DC offset, % of full scale", lambda clip: 100 * clip.offset),
        ("silent, % of the clip", lambda clip: 100 * clip.silent_share),
        ("clipped, % of samples", lambda clip: 100 * clip.clipped_share),
    )
    for name, of in quantities if clips else ():
        values = [of(clip) for clip in clips]
        least, median, high, most = np.quantile(values, [0, 0.5, 0.95, 1]).tolist()
        yield Measure(name=name, least=least, median=median, percentile_95=high, most=most)


def _script(question: Question) -> str:
    counts = script_counts(" ".join([question.text, *question.choices]))
    return counts.most_common(1)[0][0] if counts else NO_SCRIPT


def _counted(values: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(values).items()))
