"""`mmar-jobs data guard`: refuse training rows that match the benchmark, each with its evidence.

Not here: the rules (guard.py), how clips are read (clip_pool.py). `ingest` guards by the same rules
on its own, and `generate` checks that it did; this says it before a run, and writes what is left.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mmar_jobs.datasets.clip_arguments import add_clip_arguments, num_jobs, place_of, tracker
from mmar_jobs.datasets.fingerprint import FRAME_S, Print
from mmar_jobs.datasets.guard import Ear, Hit, Rule, find_hits
from mmar_jobs.datasets.near import MAX_FRAMES, is_printable
from mmar_jobs.datasets.question_file import Heard, QuestionFile, hear, read_question_file
from mmar_jobs.errors import DataError, ExitCode, GateError
from mmar_jobs.output import write_output

_NUM_SHOWN: Final = 20


@dataclass(frozen=True)
class Verdict:
    """What the guard says of a training file.

    `unheard` are rows whose clip could not be examined, by line number: nobody can say whether the
    benchmark is in them, so they are refused as well. Unprintable clips could be compared by id,
    source and bytes only, for too little happens in them.
    """

    file: QuestionFile
    num_benchmark: int
    hits: list[Hit]
    unheard: dict[int, str]
    num_unprintable: int
    num_unprintable_benchmark: int

    @property
    def refused(self) -> set[int]:
        """Line numbers of the rows that must not be trained on."""
        ids = {hit.id for hit in self.hits}
        return {number for number, row in self.file.rows if row.id in ids} | set(self.unheard)


def add_guard_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `data guard`."""
    parser.add_argument("train", metavar="TRAIN", help="training questions, JSONL; a path or URI")
    parser.add_argument(
        "--benchmark", required=True, help="benchmark questions, path or URI (required)"
    )
    parser.add_argument(
        "--audio-root", default="", help="where training clips lie (default: beside TRAIN)"
    )
    parser.add_argument(
        "--benchmark-audio-root", default="", help="where its clips lie (default: beside it)"
    )
    add_clip_arguments(parser)
    parser.add_argument(
        "--no-audio",
        action="store_true",
        help="compare ids, sources and recorded digests; read no clip (default: read all)",
    )
    parser.add_argument("--hits", type=Path, help="write the hits as JSON lines (default: none)")
    parser.add_argument(
        "--clean", type=Path, help="write the rows that pass, as they stand (default: none)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object (default: a table)"
    )


def guard(chosen: argparse.Namespace) -> int:
    """Run the guard; GateError, exit 3, when any row is refused."""
    benchmark = _read(chosen.benchmark, chosen.benchmark_audio_root, chosen)
    if benchmark.bad:
        raise DataError(
            f"{chosen.benchmark} line {benchmark.bad[0].line_number}: {benchmark.bad[0].reason}: "
            "what cannot be read cannot be guarded"
        )
    file = _read(chosen.train, chosen.audio_root, chosen)
    if chosen.clean is not None:
        file.require_lines()
    verdict = _look(file, benchmark) if chosen.no_audio else _listen(file, benchmark, chosen)
    if chosen.hits is not None:
        lines = [hit.model_dump_json(exclude_defaults=True) for hit in verdict.hits]
        write_output(chosen.hits, "".join(f"{line}\n" for line in lines))
    if chosen.clean is not None:
        write_output(chosen.clean, file.without(verdict.refused))
    text = json.dumps(_as_json(verdict), indent=1) if chosen.json else "\n".join(_table(verdict))
    sys.stdout.write(f"{text}\n")
    if verdict.refused:
        advice = f"train on {chosen.clean}" if chosen.clean else "write the others with --clean"
        raise GateError(
            f"{len(verdict.refused)} of {len(file.rows)} rows of {file.uri} are refused: {advice}"
        )
    return ExitCode.DONE


def _read(uri: str, audio_root: str, chosen: argparse.Namespace) -> QuestionFile:
    return read_question_file(uri, audio_root=audio_root, endpoint_url=chosen.endpoint_url)


def _look(file: QuestionFile, benchmark: QuestionFile) -> Verdict:
    """The verdict without any clip."""
    hits = find_hits(file.questions, benchmark.questions, {})
    return Verdict(file, len(benchmark.rows), hits, {}, 0, 0)


def _listen(file: QuestionFile, benchmark: QuestionFile, chosen: argparse.Namespace) -> Verdict:
    theirs: dict[str, Print] = {}
    known = _hear(benchmark, chosen, theirs.__setitem__)
    if known.problems:
        number, why = next(iter(known.problems.items()))
        raise DataError(
            f"{len(known.problems)} of {len(benchmark.rows)} benchmark clips cannot be guarded; "
            f"line {number}: {why}"
        )
    ear = Ear(theirs)
    plain: set[str] = set()

    def listen(digest: str, made: Print) -> None:
        ear.hear(digest, made)
        if not is_printable(made):
            plain.add(digest)

    ours = _hear(file, chosen, listen)
    return Verdict(
        file=file,
        num_benchmark=len(benchmark.rows),
        hits=find_hits(ours.questions, known.questions, ear.sounds()),
        unheard=ours.problems,
        num_unprintable=len(plain),
        num_unprintable_benchmark=sum(not is_printable(made) for made in theirs.values()),
    )


def _hear(
    file: QuestionFile, chosen: argparse.Namespace, listen: Callable[[str, Print], object]
) -> Heard:
    """Examine a file's clips; one too long to compare as a whole is a problem as well."""
    heard = hear(file, place_of(file, chosen), tracker(), listen, jobs=num_jobs(chosen.jobs))
    for number, clip in heard.examined.items():
        if clip.facts is not None and clip.facts.num_print_frames > MAX_FRAMES:
            why = (
                f"lasts {clip.facts.duration_s:.0f} s, {MAX_FRAMES * FRAME_S:.0f} s can be compared"
            )
            heard.examined[number] = replace(clip, problem=f"its clip {why}: cut it")
    return heard


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "file": verdict.file.uri,
        "num_rows": len(verdict.file.rows),
        "num_benchmark_rows": verdict.num_benchmark,
        "num_refused": len(verdict.refused),
        "num_bad_rows": len(verdict.file.bad),
        "num_unprintable_clips": verdict.num_unprintable,
        "num_unprintable_benchmark_clips": verdict.num_unprintable_benchmark,
        "hits": [hit.model_dump(mode="json", exclude_defaults=True) for hit in verdict.hits],
        "unheard": [
            {"line_number": number, "reason": why} for number, why in verdict.unheard.items()
        ],
    }


def _table(verdict: Verdict) -> Iterator[str]:
    """What was found, then one line for each refused row with its strongest evidence."""
    file = verdict.file
    yield (
        f"{file.uri}: {len(verdict.refused)} of {len(file.rows)} rows refused, held against "
        f"{verdict.num_benchmark} of the benchmark"
    )
    yield from (f"  {count} {words}" for count, words in _counts(verdict) if count)
    hits: dict[str, list[Hit]] = {}
    for hit in verdict.hits:
        hits.setdefault(hit.id, []).append(hit)
    reasons = dict(verdict.unheard)
    for number, row in file.rows:
        if row.id in hits:
            more = f", and {len(hits[row.id]) - 1} more" if len(hits[row.id]) > 1 else ""
            reasons[number] = f"{row.id} {hits[row.id][0].evidence()}{more}"
    yield from (f"line {number}: {reasons[number]}" for number in sorted(reasons)[:_NUM_SHOWN])
    if len(reasons) > _NUM_SHOWN:
        yield f"and {len(reasons) - _NUM_SHOWN} more: --hits or --json have them all"


def _counts(verdict: Verdict) -> Iterator[tuple[int, str]]:
    rows_by_rule = Counter(rule for rule, _ in {(hit.rule, hit.id) for hit in verdict.hits})
    yield from ((rows_by_rule[rule], f"by {rule}") for rule in Rule)
    yield len(verdict.unheard), "for their clip cannot be examined"
    yield len(verdict.file.bad), "more lines are no question"
    yield verdict.num_unprintable, "clips too plain to be known by their sound"
    yield verdict.num_unprintable_benchmark, "such clips in the benchmark"
