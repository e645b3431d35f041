"""Which training rows share their sound with the benchmark, by which rule, and the evidence; pure.

Four rules: the same id, the same source (a video), the same file, the same sound (near.py). Not
here: reading rows and clips (guard_command.py, stages/ingest.py). Every row is judged by itself and
every pair alone, so neither the order nor other rows can hide a hit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from mmar_jobs.datasets.fingerprint import VERSION, Print
from mmar_jobs.datasets.near import Index, Match
from mmar_jobs.manifest import canonical_json, sha256
from mmar_jobs.records import Question, Record
from mmar_jobs.split import source_keys

GUARD: Final = "guard"
_PROBABILITY_FLOOR: Final = 1e-300

# Prints by the SHA-256 of their clip's file.
Prints = Mapping[str, Print]
Sounds = Mapping[str, Sequence[tuple[str, Match]]]


class Rule(StrEnum):
    """How a row was recognised; also the order in which a row's hits are listed."""

    ID = "id"
    SOURCE = "source"
    FILE = "file"
    SOUND = "sound"


_RULE_OF: Final = {"id": Rule.ID, "source": Rule.SOURCE, "audio": Rule.FILE}


class Hit(Record):
    """One row that shares something with one row of the benchmark.

    `key` is what both share: the id, the source id, the file's SHA-256. For Rule.SOUND it is empty
    and the stretch says what was heard: where it begins in either clip and how long it is, in
    seconds, what share of its features agree, the log-likelihood ratio in nats, and the bound on
    the chance that unlike clips match as well (near.Match).
    """

    id: str
    rule: Rule
    benchmark_id: str
    key: str = ""
    row_s: float | None = None
    benchmark_s: float | None = None
    stretch_s: float | None = None
    agreement: float | None = None
    score: float | None = None
    probability: float | None = None

    def evidence(self) -> str:
        """One phrase for a person."""
        if self.rule is not Rule.SOUND:
            kind = "audio" if self.rule is Rule.FILE else self.rule.value
            shown = self.key[:12] if self.rule is Rule.FILE else self.key
            return f"has the same {kind} {shown} as {self.benchmark_id}"
        chance = max(self.probability or 0.0, _PROBABILITY_FLOOR)
        return (
            f"sounds like {self.benchmark_id}: {self.stretch_s:.1f} s from {self.row_s:.1f} s on "
            f"are its {self.benchmark_s:.1f} s on (score {self.score:.0f}, chance {chance:.0e})"
        )


def find_hits(rows: Sequence[Question], benchmark: Sequence[Question], sounds: Sounds) -> list[Hit]:
    """Every hit, in the order of `rows`; `sounds` says which clips sound alike (find_sounds)."""
    owners: dict[tuple[str, str], list[str]] = {}
    for question in benchmark:
        for key in source_keys(question):
            owners.setdefault(key, []).append(question.id)
    return [hit for row in rows for hit in _hits_of(row, owners, sounds)]


def _hits_of(
    row: Question, owners: Mapping[tuple[str, str], Sequence[str]], sounds: Sounds
) -> Iterable[Hit]:
    found: dict[tuple[str, Rule], Hit] = {}
    for kind, key in source_keys(row):
        for owner in owners.get((kind, key), ()):
            hit = Hit(id=row.id, rule=_RULE_OF[kind], benchmark_id=owner, key=key)
            found.setdefault((owner, hit.rule), hit)
    for digest, match in sounds.get(row.audio_sha256, ()):
        for owner in owners.get(("audio", digest), ()):
            if (owner, Rule.FILE) not in found:
                found[owner, Rule.SOUND] = _sound_hit(row.id, owner, match)
    order = list(Rule)
    return sorted(found.values(), key=lambda hit: (order.index(hit.rule), hit.benchmark_id))


def _sound_hit(row_id: str, owner: str, match: Match) -> Hit:
    return Hit(
        id=row_id,
        rule=Rule.SOUND,
        benchmark_id=owner,
        row_s=match.second_s,
        benchmark_s=match.first_s,
        stretch_s=match.stretch_s,
        agreement=match.agreement,
        score=match.score,
        probability=match.probability,
    )


def find_sounds(
    clips: Prints, benchmark: Prints, advance: Callable[[int], object] = lambda _: None
) -> dict[str, list[tuple[str, Match]]]:
    """The clips that sound like one of the benchmark's, with each that they sound like.

    `advance` is told how many clips were compared since the last time.
    """
    names, theirs = sorted(clips), sorted(benchmark)
    index = Index([benchmark[name] for name in theirs])
    found: dict[str, list[tuple[str, Match]]] = {}
    for first in range(0, len(names), _CHUNK):
        chunk = names[first : first + _CHUNK]
        for mine, other, match in index.search([clips[name] for name in chunk]):
            found.setdefault(chunk[other], []).append((theirs[mine], match))
        advance(len(chunk))
    return {name: sorted(pairs, key=lambda pair: pair[0]) for name, pairs in found.items()}


_CHUNK: Final = 256


def is_printable(made: Print) -> bool:
    """Whether a copy of this clip could be recognised by its sound at all."""
    return any(True for _ in Index([made]).search([made]))


def guarded_digest(rows: Iterable[Question], benchmark: Iterable[Question]) -> str:
    """What a finished guard has seen: the clips of both sides and the version of the rules.

    A later stage computes it again from the rows that it reads: a row that came in behind the
    guard, or a guard of older rules, gives another digest.
    """
    sides = [sorted({row.audio_sha256 for row in side}) for side in (rows, benchmark)]
    return sha256(canonical_json([GUARD, VERSION, *sides]))
