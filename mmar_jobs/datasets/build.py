"""Data sets in, questions out: read, choices drawn, mixed, clips gathered, split by sound.

Not here: flags (build_command.py), the sources' formats, which clips sound alike (sounds.py). The
same sources, settings and seed give the same bytes.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from mmar_jobs.datasets.choices import Pool, most_each
from mmar_jobs.datasets.clip_files import ClipFiles
from mmar_jobs.datasets.countingqa import read_countingqa
from mmar_jobs.datasets.drafts import Draft, LeftOut, Reader
from mmar_jobs.datasets.mixing import choose, mix
from mmar_jobs.datasets.musicbench import read_musicbench
from mmar_jobs.datasets.sounds import Sounds
from mmar_jobs.datasets.tables import read_tables
from mmar_jobs.datasets.tacos import read_tacos
from mmar_jobs.errors import DataError
from mmar_jobs.records import Question, canonical
from mmar_jobs.store.uri import relative_key

READERS: Final[Mapping[str, Reader]] = {
    "countingqa": read_countingqa,
    "musicbench": read_musicbench,
    "musiccaps": read_musicbench,
    "tacos": read_tacos,
    "table": read_tables,
}
_TOGETHER: Final = ("of the above", "both ", "neither ")


@dataclass(frozen=True)
class Source:
    """One `--source`: rows and clips at `path`, a file or a folder, and its ratio in the mix."""

    name: str
    kind: str
    path: Path
    ratio: Fraction | None = None

    @property
    def folder(self) -> Path:
        """Where its clips lie."""
        return self.path if self.path.is_dir() else self.path.parent


@dataclass(frozen=True)
class BuildRecipe:
    """What changes the questions, besides the sources."""

    seed: int = 0
    num_choices: int = 4
    total: int | None = None
    heldout_share: float = 0.1
    keep_skewed: bool = False
    max_clip_s: float = 30.0
    ignore_copies: bool = False


@dataclass
class Built:
    """Questions with the file of each one's clip, and what was left out."""

    questions: list[Question] = field(default_factory=list)
    clips: dict[str, Path] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    num_available: dict[str, int] = field(default_factory=dict)


def make_questions(sources: Sequence[Source], recipe: BuildRecipe, sounds: Sounds) -> Built:
    """Read every source, draw choices, hear clips and mix.

    Only clips of the mix are heard; where some cannot be used, the mix is made again without them,
    so its ratios hold for what is written. Raises DataError where a source gives no question.
    """
    left_out: list[LeftOut] = []
    by_source = _read_all(sources, recipe, left_out)
    while True:
        built = _mix(sources, by_source, recipe)
        problems = sounds.problems(built.clips.values())
        if not problems:
            built.left_out = left_out
            return built
        for source in sources:
            for question, clip in by_source[source.name]:
                if clip in problems:
                    reason = f"its clip cannot be used: {problems[clip]}"
                    left_out.append(_left_out(source, question.id, reason))
            kept = [made for made in by_source[source.name] if made[1] not in problems]
            by_source[source.name] = kept
            _require_any(source, kept, left_out)


def _read_all(
    sources: Sequence[Source], recipe: BuildRecipe, left_out: list[LeftOut]
) -> dict[str, list[tuple[Question, Path]]]:
    by_source: dict[str, list[tuple[Question, Path]]] = {}
    seen: set[str] = set()
    for source in sources:
        made = by_source.setdefault(source.name, [])
        for item in _questions(source, recipe):
            if isinstance(item, LeftOut):
                left_out.append(item)
            elif item[0].id in seen:
                left_out.append(_left_out(source, item[0].id, "its id is already taken"))
            else:
                seen.add(item[0].id)
                made.append(item)
        _require_any(source, made, left_out)
    return by_source


def _require_any(source: Source, made: Sequence[object], left_out: Sequence[LeftOut]) -> None:
    if not made:
        first = next((e.reason for e in left_out if e.source == source.name), "no rows")
        raise DataError(f"source {source.name} at {source.path} gave no question ({first})")


def _mix(
    sources: Sequence[Source],
    by_source: Mapping[str, Sequence[tuple[Question, Path]]],
    recipe: BuildRecipe,
) -> Built:
    built = Built(num_available={name: len(made) for name, made in by_source.items()})
    ratios = {source.name: source.ratio for source in sources}
    for name, count in mix(built.num_available, ratios, recipe.total).items():
        chosen = choose([question.id for question, _ in by_source[name]], count, recipe.seed)
        for question, clip in by_source[name]:
            if question.id in chosen:
                built.questions.append(question)
                built.clips[question.id] = clip
    return built


def _questions(source: Source, recipe: BuildRecipe) -> Iterator[tuple[Question, Path] | LeftOut]:
    clips = ClipFiles(source.folder)
    drafts: list[tuple[Draft, Path]] = []
    for item in READERS[source.kind](source.path, source.name, recipe.seed):
        if isinstance(item, LeftOut):
            yield item
        elif (clip := clips.find(item.audio)) is None:
            yield _left_out(source, item.id, f"its clip {item.audio[:80]} is not there")
        else:
            drafts.append((item, clip))
    pools: dict[str, list[Draft]] = {}
    for draft, _ in drafts:
        if not draft.choices:
            pools.setdefault(draft.pool, []).append(draft)
    surplus = set() if recipe.keep_skewed else _surplus(pools.values(), recipe)
    drawn = {
        name: Pool([d for d in pool if d.id not in surplus], pool[0].rule, recipe.num_choices)
        for name, pool in pools.items()
    }
    for draft, clip in drafts:
        if draft.id in surplus:
            yield _left_out(source, draft.id, "its answer is too frequent to hide among choices")
            continue
        made = _question(draft, source, clip, drawn, recipe)
        yield (made, clip) if isinstance(made, Question) else _left_out(source, draft.id, made)


def _surplus(pools: Iterable[Sequence[Draft]], recipe: BuildRecipe) -> set[str]:
    """Drafts beyond the number up to which their answer can hide (choices.most_each)."""
    surplus: set[str] = set()
    for pool in pools:
        by_answer: dict[str, list[str]] = {}
        for draft in pool:
            by_answer.setdefault(canonical(draft.answer), []).append(draft.id)
        most = most_each([len(ids) for ids in by_answer.values()], recipe.num_choices)
        for ids in by_answer.values():
            surplus.update(set(ids) - choose(ids, most, recipe.seed))
    return surplus


def _question(
    draft: Draft, source: Source, clip: Path, pools: Mapping[str, Pool], recipe: BuildRecipe
) -> Question | str:
    """The question of a draft, or why there is none."""
    dice = _dice(recipe.seed, draft.id)
    choices = draft.choices
    if not choices:
        choices = pools[draft.pool].draw(draft.answer, dice)
    elif not any(word in choice.casefold() for word in _TOGETHER for choice in choices):
        choices = tuple(dice.sample(choices, len(choices)))
    if not choices:
        return "no other answer goes with its own"
    try:
        return Question(
            id=draft.id,
            audio=relative_key(f"audio/{source.name}/{clip.relative_to(source.folder).as_posix()}"),
            text=draft.text,
            choices=choices,
            answer=draft.answer,
            dataset=draft.dataset,
            modality=draft.modality,
            category=draft.category,
            sub_category=draft.sub_category,
            language=draft.language,
            source_ids=draft.source_ids,
        )
    except DataError as error:
        return str(error)
    except ValidationError as error:
        return str(error.errors()[0].get("ctx", {}).get("error") or error.errors()[0]["msg"])


def _dice(seed: int, key: str) -> random.Random:
    digest = hashlib.sha256(f"{seed}\0choices\0{key}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))  # noqa: S311 - not for secrets


def _left_out(source: Source, row: str, reason: str) -> LeftOut:
    return LeftOut(source=source.name, row=row, reason=reason)


def sound_keys(built: Built, sounds: Sounds, *, with_copies: bool) -> dict[str, list[str]]:
    """Everything that ties each question to its sound, by id: file, source ids, near-copies."""
    copies = sounds.copies(list(built.clips.values())) if with_copies else {}
    keys: dict[str, list[str]] = {}
    for question in built.questions:
        clip = built.clips[question.id]
        own = [f"audio:{sounds.digest(clip)}"]
        own += [f"source:{source_id}" for source_id in question.source_ids]
        own += [f"copy:{pair}" for pair in copies.get(clip, ())]
        keys[question.id] = own
    return keys


def count_all(splits: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    """Counts by split, then by data set, category and number of choices."""
    return {
        name: {
            "num_questions": len(questions),
            "num_clips": len({question.audio for question in questions}),
            "by_dataset": _counted(question.dataset for question in questions),
            "by_category": _counted(question.category for question in questions),
            "by_num_choices": _counted(str(len(question.choices)) for question in questions),
        }
        for name, questions in splits.items()
    }


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def reasons(left_out: Sequence[LeftOut]) -> dict[str, dict[str, int]]:
    """How many rows were left out, by source and reason without the row's own words."""
    found: dict[str, Counter[str]] = {}
    for entry in left_out:
        kind = " ".join(word for word in entry.reason.split() if not _is_own(word))
        found.setdefault(entry.source, Counter())[kind] += 1
    return {name: dict(counts.most_common()) for name, counts in sorted(found.items())}


def _is_own(word: str) -> bool:
    return any(mark in word for mark in "'\"/\\0123456789[]")


def to_lines(records: Iterable[Question | LeftOut]) -> bytes:
    """JSON lines, the same bytes for the same records."""
    return "".join(f"{record.model_dump_json()}\n" for record in records).encode()
