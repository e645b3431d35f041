"""Questions and clips in; a checked, split and digest-pinned questions artifact out.

Every later stage reads this artifact and nothing else, so what is checked here is checked once:
rows parse, clips decode, training shares nothing with the benchmark, and no clip is on both sides
of the held-out split. A bad training row is left out and counted; a bad benchmark row is an error,
for a submission must answer them all. Not here: foreign row formats (datasets/), clips that
sound alike on both sides of its own split (`data build --groups`).
"""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from mmar_jobs.artifact import Artifact, begin
from mmar_jobs.audio import SAMPLE_RATE_HZ, ClipReader, decode
from mmar_jobs.datasets.fingerprint import VERSION, Print, fingerprint
from mmar_jobs.datasets.guard import GUARD, find_hits, find_sounds, guarded_digest
from mmar_jobs.datasets.mmar import BadRow, parse_numbered
from mmar_jobs.datasets.near import is_printable
from mmar_jobs.errors import DataError, GateError, SettingsError
from mmar_jobs.layout import BENCHMARK, HELDOUT, REJECTS, TRAIN, questions_key, split_shard
from mmar_jobs.manifest import sha256
from mmar_jobs.questions import Reject
from mmar_jobs.recipes import DataRecipe, recipe
from mmar_jobs.records import Question
from mmar_jobs.settings import IngestCommand
from mmar_jobs.split import split_by_source
from mmar_jobs.stages import Edges, stopwatch
from mmar_jobs.store import join_uri, read_uri, split_uri
from mmar_jobs.store.uri import parse_uri

STAGE: Final = "ingest"
_NUM_SHOWN: Final = 3
_NUM_LISTED: Final = 100
# What the tokenizer would read as control tokens: such a text would end or fake a turn of the chat.
_CONTROL: Final = re.compile(r"<\|\w+\|>|</?think>")


@dataclass
class _Source:
    """One question file: its questions with their clips' facts, and its rejects."""

    name: str
    data: bytes
    audio_root: str
    questions: list[Question] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    line_of: dict[str, int] = field(default_factory=dict)
    prints: dict[str, Print] = field(default_factory=dict)

    def reject(self, line_number: int, question_id: str | None, reason: str) -> None:
        """Leave a row out."""
        self.rejects.append(
            Reject(source=self.name, line_number=line_number, id=question_id, reason=reason)
        )


def run(command: IngestCommand, edges: Edges) -> Artifact:
    """Make or verify the questions artifact of a run."""
    cost: dict[str, float] = {}
    with stopwatch(cost):
        sources = [_open(name, uri, command) for name, uri in _given(command)]
        draft = begin(
            edges.store,
            questions_key(command.run_id),
            stage=STAGE,
            recipe=recipe(("data", command.data)) | {GUARD: VERSION},
            inputs={source.name: sha256(source.data) for source in sources},
        )
        if isinstance(draft, Artifact):
            rejects = list(draft.read_records(REJECTS, Reject))
            _check_benchmark(rejects)
            _report(rejects, edges, strict=command.strict)
            return draft
        for source in sources:
            _read(source, command.data, edges, endpoint_url=command.endpoint_url)
        _report([r for source in sources for r in source.rejects], edges, strict=command.strict)
        splits = _split({source.name: source for source in sources}, command.data)
        rejects = [reject for source in sources for reject in source.rejects]
        for split, questions in splits.items():
            draft.write_records(split_shard(split), questions)
        draft.write_records(REJECTS, rejects)
    return draft.finish(
        [*map(split_shard, splits), REJECTS],
        counts={f"num_{split}": len(rows) for split, rows in splits.items()}
        | {"num_rejects": len(rejects)},
        metrics={
            "rejects": [reject.model_dump() for reject in rejects[:_NUM_LISTED]],
            GUARD: _guard_record(splits) | {"num_unprintable": _num_unprintable(sources)},
        },
        placement={"audio_roots": _audio_roots(sources)},
        cost=cost,
    )


def _given(command: IngestCommand) -> list[tuple[str, str]]:
    for name, uri in ((TRAIN, command.questions), (BENCHMARK, command.benchmark)):
        if not uri:
            flag = "--questions" if name == TRAIN else "--benchmark"
            raise SettingsError(
                f"{flag} is needed: a path or URI of a JSONL file with {name} questions"
            )
    given = [(TRAIN, command.questions), (BENCHMARK, command.benchmark)]
    return [*given, (HELDOUT, command.heldout)] if command.heldout else given


def _open(name: str, uri: str, command: IngestCommand) -> _Source:
    data = read_uri(uri, endpoint_url=command.endpoint_url)
    if command.audio_root:
        return _Source(name, data, parse_uri(command.audio_root).uri)
    root, key = split_uri(uri)
    folder = key.rpartition("/")[0]
    return _Source(name, data, join_uri(root, folder) if folder else root)


def _audio_roots(sources: Sequence[_Source]) -> dict[str, str]:
    roots = {source.name: source.audio_root for source in sources}
    return {HELDOUT: roots[TRAIN], **roots}


def _read(source: _Source, recipe: DataRecipe, edges: Edges, *, endpoint_url: str | None) -> None:
    """Parse a source's rows and decode every clip once."""
    rows: list[Question] = []
    for number, row in parse_numbered(source.data.splitlines(), source.name):
        problem = row.reason if isinstance(row, BadRow) else _problem(row, source.name)
        if isinstance(row, BadRow) or problem:
            source.reject(number, row.id, problem)
        else:
            source.line_of[row.id] = number
            rows.append(row)

    clips = ClipReader(source.audio_root, endpoint_url=endpoint_url)

    def probe(question: Question) -> tuple[Question, Print] | str:
        try:
            return _probed(question, clips, recipe.max_clip_s)
        except DataError as error:
            return str(error)

    label = f"checking {source.name} clips"
    with edges.track(label, len(rows)) as advance, ThreadPoolExecutor(max_workers=4) as pool:
        for row, result in zip(rows, pool.map(probe, rows), strict=True):
            advance(1)
            if isinstance(result, str):
                source.reject(source.line_of[row.id], row.id, result)
            else:
                source.questions.append(result[0])
                source.prints[result[0].audio_sha256] = result[1]
    _check_benchmark(source.rejects)
    if not source.questions:
        first = f"; the first: {source.rejects[0].reason}" if source.rejects else ""
        raise DataError(
            f"no usable row in the {source.name} questions ({len(source.rejects)} bad rows{first})"
        )


def _problem(question: Question, source: str) -> str:
    """Why a well-formed question cannot be used, or an empty text."""
    if source != BENCHMARK and question.answer is None:
        return "has no answer to learn from"
    found = _CONTROL.search("\n".join([question.text, *question.choices]))
    return f"its text holds the control token {found.group()}: remove it" if found else ""


def _probed(question: Question, clips: ClipReader, max_clip_s: float) -> tuple[Question, Print]:
    data = clips.read_bytes(question)
    clip = decode(data, question.audio, max_s=max_clip_s)
    known = {"audio_sha256": sha256(data), "audio_s": len(clip.waveform) / SAMPLE_RATE_HZ}
    return question.model_copy(update=known), fingerprint(clip.waveform)


def _guard_record(splits: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    """What generate computes again."""
    learned = [*splits[TRAIN], *splits[HELDOUT]]
    return {"version": VERSION, "digest": guarded_digest(learned, splits[BENCHMARK])}


def _num_unprintable(sources: Sequence[_Source]) -> dict[str, int]:
    """Clips of each source that only their id, source and bytes could betray."""
    return {
        source.name: sum(not is_printable(made) for made in source.prints.values())
        for source in sources
    }


def _check_benchmark(found: Sequence[Reject]) -> None:
    """Raise DataError on a bad benchmark row: without it the submission would lack an answer."""
    rejects = [reject for reject in found if reject.source == BENCHMARK]
    if not rejects:
        return
    shown = "; ".join(
        f"line {reject.line_number}{f' (id {reject.id})' if reject.id else ''}: {reject.reason}"
        for reject in rejects[:_NUM_SHOWN]
    )
    more = f"; and {len(rejects) - _NUM_SHOWN} more" if len(rejects) > _NUM_SHOWN else ""
    raise DataError(
        f"{len(rejects)} bad rows in the benchmark: {shown}{more}: the submission must answer "
        "every row: correct them or fetch their clips, then ingest again"
    )


def _report(found: Sequence[Reject], edges: Edges, *, strict: bool) -> None:
    """Warn of bad rows, or fail where the caller is strict; contaminated ones were asked to go."""
    rejects = [reject for reject in found if not reject.is_contaminated]
    if not rejects:
        return
    shown = "; ".join(
        f"{reject.source} line {reject.line_number}: {reject.reason}"
        for reject in rejects[:_NUM_SHOWN]
    )
    more = f"; and {len(rejects) - _NUM_SHOWN} more" if len(rejects) > _NUM_SHOWN else ""
    if strict:
        raise DataError(f"{len(rejects)} bad rows (--strict): {shown}{more}")
    edges.log.warning("rows_rejected", num_rejects=len(rejects), first=shown)


def _split(sources: dict[str, _Source], recipe: DataRecipe) -> dict[str, list[Question]]:
    """Guard the benchmark, then separate training from held-out questions by their sources."""
    benchmark = sources[BENCHMARK].questions
    train = _guard(sources[TRAIN], sources[BENCHMARK], "the benchmark", recipe)
    if HELDOUT in sources:
        heldout = _guard(sources[HELDOUT], sources[BENCHMARK], "the benchmark", recipe)
        sources[TRAIN].questions, sources[HELDOUT].questions = train, heldout
        train = _guard(sources[TRAIN], sources[HELDOUT], "--heldout", recipe)
    else:
        train, heldout = split_by_source(train, fraction=recipe.heldout_fraction, seed=recipe.seed)
    for name, questions in ((TRAIN, train), (HELDOUT, heldout)):
        if not questions:
            raise DataError(
                f"the {name} split is empty: give more questions, or change --data.heldout-fraction"
            )
    return {TRAIN: train, HELDOUT: heldout, BENCHMARK: benchmark}


def _guard(source: _Source, others: _Source, whose: str, recipe: DataRecipe) -> list[Question]:
    """The questions of a source that share nothing with `others`; refuses or drops the rest."""
    shared = _shared(source, others)
    if shared and recipe.contamination == "refuse":
        shown = "; ".join(f"{key} {why}" for key, why in list(shared.items())[:_NUM_SHOWN])
        raise GateError(
            f"{len(shared)} {source.name} questions are contaminated by {whose}: {shown}: remove "
            "these rows, or drop them with --data.contamination drop"
        )
    source.rejects += [
        Reject(
            source=source.name,
            line_number=source.line_of[key],
            id=key,
            reason=f"is contaminated by {whose}: {why}",
            is_contaminated=True,
        )
        for key, why in shared.items()
    ]
    return [question for question in source.questions if question.id not in shared]


def _shared(source: _Source, others: _Source) -> dict[str, str]:
    """The first evidence against each question that shares a sound with `others`, by id."""
    used = {question.audio_sha256 for question in source.questions}
    sounds = find_sounds(
        {digest: made for digest, made in source.prints.items() if digest in used}, others.prints
    )
    shared: dict[str, str] = {}
    for hit in find_hits(source.questions, others.questions, sounds):
        shared.setdefault(hit.id, hit.evidence())
    return shared
