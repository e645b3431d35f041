"""`mmar-jobs data guard`: refuse training rows that match the benchmark, each with its evidence.

Not here: the rules (guard.py), how clips are read (clip_pool.py). `ingest` and `generate` guard on
their own; this says the same before a run, and writes what is left.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmar_jobs.datasets.clip_arguments import add_clip_arguments, cache_path, num_jobs, tracker
from mmar_jobs.datasets.clip_pool import Place
from mmar_jobs.datasets.guard import Hit, Rule, find_hits, find_sounds, is_printable
from mmar_jobs.datasets.question_file import Heard, QuestionFile, hear, read_question_file
from mmar_jobs.errors import DataError, ExitCode, GateError, SettingsError
from mmar_jobs.progress import Tracker

_NUM_SHOWN: Final = 20


@dataclass(frozen=True)
class Verdict:
    """What the guard says of one training file.

    `unheard` are rows whose clip could not be examined, by line number: nobody can say whether the
    benchmark is in them, so they are refused as well. `num_unprintable` clips could be compared by
    id, source and bytes only, for too little happens in them.
    """

    file: QuestionFile
    hits: list[Hit]
    unheard: dict[int, str]
    num_unprintable: int

    @property
    def refused(self) -> set[int]:
        """Line numbers of the rows that must not be trained on."""
        ids = {hit.id for hit in self.hits}
        return {number for number, row in self.file.rows if row.id in ids} | set(self.unheard)


def add_guard_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `data guard`."""
    parser.add_argument(
        "train", nargs="+", metavar="TRAIN", help="training questions, JSONL; paths or URIs"
    )
    parser.add_argument(
        "--benchmark", required=True, help="benchmark questions, path or URI (required)"
    )
    parser.add_argument(
        "--audio-root", default="", help="where training clips lie (default: beside each TRAIN)"
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
    files = [_read(uri, chosen.audio_root, chosen) for uri in chosen.train]
    track = tracker()
    theirs = _hear(benchmark, chosen, track)
    for question, result in zip(benchmark.questions, theirs.examined, strict=False):
        if result.problem:
            raise DataError(f"benchmark row {question.id} cannot be guarded: {result.problem}")
    verdicts = [_judge(file, theirs, chosen, track) for file in files]
    _write(verdicts, chosen)
    text = json.dumps(_as_json(verdicts), indent=1) if chosen.json else "\n".join(_table(verdicts))
    sys.stdout.write(f"{text}\n")
    num_refused = sum(len(verdict.refused) for verdict in verdicts)
    if num_refused:
        raise GateError(
            f"{num_refused} of {sum(len(verdict.file.rows) for verdict in verdicts)} rows are "
            "refused: remove them, or train on what --clean writes"
        )
    return ExitCode.DONE


def _read(uri: str, audio_root: str, chosen: argparse.Namespace) -> QuestionFile:
    return read_question_file(uri, audio_root=audio_root, endpoint_url=chosen.endpoint_url)


def _hear(file: QuestionFile, chosen: argparse.Namespace, track: Tracker) -> Heard:
    if chosen.no_audio:
        return Heard(file.questions, [], {})
    cache = cache_path(chosen.cache, file.uri)
    place = Place(file.audio_root, endpoint_url=chosen.endpoint_url, cache=cache)
    return hear(file, place, track, jobs=num_jobs(chosen.jobs))


def _judge(
    file: QuestionFile, theirs: Heard, chosen: argparse.Namespace, track: Tracker
) -> Verdict:
    ours = _hear(file, chosen, track)
    with track("comparing sounds", len(ours.prints)) as advance:
        sounds = find_sounds(ours.prints, theirs.prints, advance)
    return Verdict(
        file=file,
        hits=find_hits(ours.questions, theirs.questions, sounds),
        unheard={
            number: result.problem
            for (number, _), result in zip(file.rows, ours.examined, strict=False)
            if result.problem
        },
        num_unprintable=sum(not is_printable(made) for made in ours.prints.values()),
    )


def _write(verdicts: Sequence[Verdict], chosen: argparse.Namespace) -> None:
    if chosen.hits is not None:
        lines = [hit.model_dump_json(exclude_none=True) for v in verdicts for hit in v.hits]
        _replace(chosen.hits, "".join(f"{line}\n" for line in lines).encode())
    if chosen.clean is not None:
        _replace(chosen.clean, b"".join(v.file.without(v.refused) for v in verdicts))


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that no reader meets half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from None


def _as_json(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "files": [
            {
                "file": verdict.file.uri,
                "num_rows": len(verdict.file.rows),
                "num_refused": len(verdict.refused),
                "num_bad_rows": len(verdict.file.bad),
                "num_unprintable_clips": verdict.num_unprintable,
                "hits": [hit.model_dump(mode="json", exclude_none=True) for hit in verdict.hits],
                "unheard": [
                    {"line_number": number, "reason": why}
                    for number, why in verdict.unheard.items()
                ],
            }
            for verdict in verdicts
        ]
    }


def _table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        line_of = {row.id: number for number, row in verdict.file.rows}
        shown = [f"  line {line_of[hit.id]}: {hit.id} {hit.evidence()}" for hit in verdict.hits]
        shown += [f"  line {number}: {why}" for number, why in verdict.unheard.items()]
        yield f"{verdict.file.uri}: {_summary(verdict)}"
        yield from shown[:_NUM_SHOWN]
        if len(shown) > _NUM_SHOWN:
            yield f"  and {len(shown) - _NUM_SHOWN} more: --hits or --json have them all"


def _summary(verdict: Verdict) -> str:
    rows_by_rule = Counter(rule for rule, _ in {(hit.rule, hit.id) for hit in verdict.hits})
    parts = [f"{len(verdict.file.rows)} rows, {len(verdict.refused)} refused"]
    parts += [f"{rows_by_rule[rule]} by {rule}" for rule in Rule if rows_by_rule[rule]]
    for count, words in (
        (len(verdict.unheard), "not heard"),
        (len(verdict.file.bad), "lines that are no question"),
        (verdict.num_unprintable, "clips too plain to know by their sound"),
    ):
        if count:
            parts.append(f"{count} {words}")
    return ", ".join(parts)
