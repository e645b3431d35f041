"""Which training rows share their sound with the benchmark, by which rule, and the evidence; pure.

Four rules: the same id, the same source (a video), the same file, the same sound (near.py). A row
that shares a source or a file with a row that is hit is hit as well. Not here: reading rows and
clips (guard_command.py, stages/ingest.py). Every pair of clips is judged alone, so neither the
order nor other rows can hide a hit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final

from mmar_jobs.datasets.fingerprint import VERSION, Print
from mmar_jobs.datasets.near import Index, Match
from mmar_jobs.manifest import canonical_json, sha256
from mmar_jobs.records import Question, Record
from mmar_jobs.split import source_keys

GUARD: Final = "guard"
_PROBABILITY_FLOOR: Final = 1e-300
_CHUNK: Final = 256  # prints compared at once: few enough for a bar that moves and little memory

# Prints by the SHA-256 of their clip's file, and which files sound alike by the same.
Prints = Mapping[str, Print]
Sounds = Mapping[str, Sequence[tuple[str, Match]]]


class Rule(StrEnum):
    """How a row was recognised; also the order in which a row's hits are listed."""

    ID = "id"
    SOURCE = "source"
    FILE = "file"
    SOUND = "sound"


_RULE_OF: Final = {"id": Rule.ID, "source": Rule.SOURCE, "audio": Rule.FILE}
_RANK: Final = {rule: rank for rank, rule in enumerate(Rule)}


class Hit(Record):
    """One row that shares something with one row of the benchmark.

    `key` is what both share: the id, the source id, the file's SHA-256. Where `via` names another
    row, the key is shared with that row, and that row is hit. For Rule.SOUND the key is empty and
    the stretch says what was heard: where it begins in either clip and how long it is, in seconds,
    what share of its features agree, the log-likelihood ratio in nats, and the bound on the chance
    that unlike clips match as well (near.Match).
    """

    id: str
    rule: Rule
    benchmark_id: str
    key: str = ""
    via: str = ""
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
            if self.via:
                return f"has the same {kind} {shown} as {self.via}, which is refused"
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
    direct = {row.id: hits for row in rows if (hits := _hits_of(row, owners, sounds))}
    passed_on = _passed_on(rows, {key: hits[0].benchmark_id for key, hits in direct.items()})
    return [
        hit
        for row in rows
        for hit in direct.get(row.id) or ([passed_on[row.id]] if row.id in passed_on else [])
    ]


def _hits_of(
    row: Question, owners: Mapping[tuple[str, str], Sequence[str]], sounds: Sounds
) -> list[Hit]:
    found: dict[tuple[str, Rule], Hit] = {}
    for kind, key in source_keys(row):
        for owner in owners.get((kind, key), ()):
            hit = Hit(id=row.id, rule=_RULE_OF[kind], benchmark_id=owner, key=key)
            found.setdefault((owner, hit.rule), hit)
    for digest, match in sounds.get(row.audio_sha256, ()):
        for owner in owners.get(("audio", digest), ()):
            if (owner, Rule.FILE) not in found:
                found[owner, Rule.SOUND] = _sound_hit(row.id, owner, match)
    return sorted(
        found.values(), key=lambda hit: (_RANK[hit.rule], -(hit.score or 0.0), hit.benchmark_id)
    )


def _passed_on(rows: Sequence[Question], benchmark_ids: Mapping[str, str]) -> dict[str, Hit]:
    """A hit for each row tied to one in `benchmark_ids` by sources and files, be it over others.

    Of several ties the one over the fewest rows is told, then the first rule and the smallest id.
    """
    members: dict[tuple[str, str], list[Question]] = {}
    for row in rows:
        for key in source_keys(row):
            members.setdefault(key, []).append(row)
    by_id = {row.id: row for row in rows}
    reached = dict(benchmark_ids)
    found: dict[str, Hit] = {}
    level = sorted(reached)
    while level:
        new: dict[str, Hit] = {}
        for hit in _ties([by_id[key] for key in level], members, reached):
            known = new.get(hit.id)
            if known is None or _RANK[hit.rule] < _RANK[known.rule]:
                new[hit.id] = hit
        found |= new
        reached |= {key: hit.benchmark_id for key, hit in new.items()}
        level = sorted(new)
    return found


def _ties(
    level: Iterable[Question],
    members: dict[tuple[str, str], list[Question]],
    reached: Mapping[str, str],
) -> Iterator[Hit]:
    """Ties of the rows in `level` to rows not yet reached; each key is followed once."""
    for row in level:
        for kind, key in source_keys(row):
            for other in members.pop((kind, key), ()):
                if other.id not in reached:
                    yield Hit(
                        id=other.id,
                        rule=_RULE_OF[kind],
                        benchmark_id=reached[row.id],
                        key=key,
                        via=row.id,
                    )


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


class Ear:
    """Holds clips against those of the benchmark as they come, and keeps matches but no prints."""

    def __init__(self, benchmark: Prints) -> None:
        self._theirs = sorted(benchmark)
        self._index = Index([benchmark[name] for name in self._theirs])
        self._waiting: dict[str, Print] = {}
        self._found: dict[str, list[tuple[str, Match]]] = {}

    def hear(self, audio_sha256: str, made: Print) -> None:
        """Take one more clip; the same one twice changes nothing."""
        self._waiting[audio_sha256] = made
        if len(self._waiting) == _CHUNK:
            self._compare()

    def sounds(self) -> Sounds:
        """The clips heard so far that sound like one of the benchmark's, with each such one."""
        self._compare()
        return self._found

    def _compare(self) -> None:
        names = list(self._waiting)
        found: dict[str, list[tuple[str, Match]]] = {}
        for mine, other, match in self._index.search(list(self._waiting.values())):
            found.setdefault(names[other], []).append((self._theirs[mine], match))
        self._found |= {
            name: sorted(pairs, key=lambda pair: pair[0]) for name, pairs in found.items()
        }
        self._waiting = {}


def find_sounds(
    clips: Prints, benchmark: Prints, advance: Callable[[int], object] = lambda _: None
) -> Sounds:
    """Like Ear, for clips that are all there; `advance` is told of each."""
    ear = Ear(benchmark)
    for name, made in clips.items():
        ear.hear(name, made)
        advance(1)
    return ear.sounds()


def guarded_digest(rows: Iterable[Question], benchmark: Iterable[Question]) -> str:
    """What a finished guard has seen: the clips of both sides and the version of the rules.

    A later stage computes it again from the rows that it reads: a row that came in behind the
    guard, or a guard of older rules, gives another digest.
    """
    sides = [sorted({row.audio_sha256 for row in side}) for side in (rows, benchmark)]
    return sha256(canonical_json([GUARD, VERSION, *sides]))
