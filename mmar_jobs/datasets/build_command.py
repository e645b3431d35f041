"""`mmar-jobs data build`: the flags, the folder that is written, and what is said at the end.

Not here: what questions are made of (build.py). The folder gets its name when it is whole.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mmar_jobs.datasets import heldout
from mmar_jobs.datasets.build import (
    READERS,
    BuildRecipe,
    Built,
    Source,
    count_all,
    make_questions,
    reasons,
    sound_keys,
    to_lines,
)
from mmar_jobs.datasets.guess import guess_all
from mmar_jobs.datasets.mixing import check_ratios
from mmar_jobs.datasets.sounds import Sounds
from mmar_jobs.errors import DataError, ExitCode, SettingsError
from mmar_jobs.manifest import sha256
from mmar_jobs.progress import Tracker, bars, no_bar
from mmar_jobs.records import MAX_CHOICES, MIN_CHOICES, Question
from mmar_jobs.store.disk import explained

TRAIN: Final = "train"
HELDOUT: Final = "heldout"
_SUSPICIOUS: Final = 0.1
_MANY: Final = 50  # of fewer questions neither a share nor an accuracy says much


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `data build`."""
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="a folder that is not there")
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="KIND=PATH[:RATIO]",
        help=f"a file or fetched folder; KIND is one of {', '.join(READERS)}; RATIO is its share "
        "of the mix, by default all questions are taken (repeat for more sources)",
    )
    for flag, kind, default, text in (
        ("--seed", int, 0, "seed of choices, mix and split (default: %(default)s)"),
        ("--total", int, None, "questions in all (default: as many as the ratios allow)"),
        ("--heldout-share", float, 0.1, "share of held-out questions (default: %(default)s)"),
        ("--num-choices", int, 4, "choices where they are drawn (default: %(default)s)"),
        ("--max-clip-s", float, 30.0, "longest clip used, s (default: %(default)s)"),
        ("--jobs", int, 0, "processes that decode clips, 0 for all cores (default: %(default)s)"),
        ("--cache", Path, None, "file that keeps what was heard for later (default: none)"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=text)
    parser.add_argument(
        "--keep-skewed",
        action="store_true",
        help="keep answers so frequent that text alone gives them away (default: leave out)",
    )
    parser.add_argument(
        "--ignore-copies",
        action="store_true",
        help="let near-copies of a clip be on both sides of the split (default: keep together)",
    )


def build(chosen: argparse.Namespace) -> int:
    """Write train.jsonl, heldout.jsonl, audio/, left_out.jsonl and manifest.json."""
    sources = parse_sources(chosen.source)
    recipe = _recipe(chosen)
    if chosen.output.exists() and (not chosen.output.is_dir() or any(chosen.output.iterdir())):
        raise SettingsError(f"{chosen.output} is already there: delete it or choose another folder")
    console = Console(stderr=True)
    track = bars(console) if console.is_terminal else no_bar
    sounds = Sounds(track, chosen.jobs or os.cpu_count() or 1, recipe.max_clip_s, chosen.cache)
    built = make_questions(sources, recipe, sounds)
    keys = sound_keys(built, sounds, with_copies=not recipe.ignore_copies)
    splits = _split(built, keys, recipe)
    manifest = _manifest(sources, recipe, built, splits)
    with explained("write", str(chosen.output)):
        _write(chosen.output, built, splits, manifest, track=track)
    _say(chosen.output, manifest)
    return ExitCode.DONE


def parse_sources(texts: Sequence[str]) -> list[Source]:
    """The sources of KIND=PATH[:RATIO] texts; a second one of a kind is called KIND-2."""
    sources: list[Source] = []
    for text in texts:
        kind, equals, rest = text.partition("=")
        if not equals or kind not in READERS:
            raise SettingsError(
                f"--source {text!r}: needs KIND=PATH[:RATIO], KIND one of {', '.join(READERS)}"
            )
        path, ratio = _ratio(rest, text)
        if not path.exists():
            raise SettingsError(f"--source {text!r}: there is no {path}")
        num_same = sum(source.kind == kind for source in sources)
        name = f"{kind}-{num_same + 1}" if num_same else kind
        sources.append(Source(name, kind, path, ratio))
    check_ratios({source.name: source.ratio for source in sources})
    return sources


def _ratio(rest: str, text: str) -> tuple[Path, Fraction | None]:
    """The ratio is what follows the last colon, unless the whole text is a path."""
    before, colon, after = rest.rpartition(":")
    if not colon or Path(rest).exists():
        return Path(rest), None
    try:
        ratio = Fraction(after)
    except (ValueError, ZeroDivisionError):
        raise SettingsError(f"--source {text!r}: {after!r} is no ratio, and no path") from None
    if ratio <= 0:
        raise SettingsError(f"--source {text!r}: the ratio must be positive")
    return Path(before), ratio


def _recipe(chosen: argparse.Namespace) -> BuildRecipe:
    if not MIN_CHOICES <= chosen.num_choices <= MAX_CHOICES:
        raise SettingsError(f"--num-choices must be from {MIN_CHOICES} to {MAX_CHOICES}")
    if not 0 <= chosen.heldout_share < 1:
        raise SettingsError("--heldout-share must be at least 0 and below 1")
    if chosen.jobs < 0 or (chosen.total is not None and chosen.total < 1):
        raise SettingsError("--jobs must not be negative and --total must be at least 1")
    if not chosen.max_clip_s > 0:
        raise SettingsError("--max-clip-s must be positive")
    return BuildRecipe(
        seed=chosen.seed,
        num_choices=chosen.num_choices,
        total=chosen.total,
        heldout_share=chosen.heldout_share,
        keep_skewed=chosen.keep_skewed,
        max_clip_s=chosen.max_clip_s,
        ignore_copies=chosen.ignore_copies,
    )


def _split(
    built: Built, keys: Mapping[str, Sequence[str]], recipe: BuildRecipe
) -> dict[str, list[Question]]:
    strata = {
        question.id: f"{question.dataset}\0{question.category}" for question in built.questions
    }
    held = heldout.split(keys, strata, share=recipe.heldout_share, seed=recipe.seed)
    splits = {
        TRAIN: [question for question in built.questions if question.id not in held],
        HELDOUT: [question for question in built.questions if question.id in held],
    }
    for name, questions in splits.items():
        if not questions and (name == TRAIN or recipe.heldout_share):
            raise DataError(
                f"the {name} split is empty: {len(built.questions)} questions of too few sounds; "
                "give more, or change --heldout-share"
            )
    return splits


def _manifest(
    sources: Sequence[Source],
    recipe: BuildRecipe,
    built: Built,
    splits: Mapping[str, Sequence[Question]],
) -> dict[str, Any]:
    everything = [question for questions in splits.values() for question in questions]
    by_category: dict[str, list[Question]] = {}
    for question in everything:
        by_category.setdefault(f"{question.dataset}: {question.category}", []).append(question)
    return {
        "recipe": asdict(recipe),
        "sources": [
            {
                "name": source.name,
                "kind": source.kind,
                "path": str(source.path),
                "ratio": None if source.ratio is None else str(source.ratio),
                "fetched": _fetched(source.folder),
                "num_available": built.num_available[source.name],
            }
            for source in sources
        ],
        "counts": count_all(splits),
        "left_out": reasons(built.left_out),
        "text_only": {
            name: {guesser: guess._asdict() for guesser, guess in guess_all(questions).items()}
            for name, questions in sorted(by_category.items())
        },
        "files": {
            f"{name}.jsonl": sha256(to_lines(questions)) for name, questions in splits.items()
        },
    }


def _fetched(folder: Path) -> dict[str, Any] | None:
    """What `data fetch` says of a source: where it comes from, at which revision and licence."""
    try:
        value = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return {key: value.get(key) for key in ("name", "repository", "revision", "licence")}
    except (OSError, ValueError, AttributeError):
        return None


def _write(
    output: Path,
    built: Built,
    splits: Mapping[str, Sequence[Question]],
    manifest: Mapping[str, Any],
    *,
    track: Tracker,
) -> None:
    staging = output.with_name(f".{output.name}.building")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    clips = {q.audio: built.clips[q.id] for questions in splits.values() for q in questions}
    with track("gathering clips", len(clips)) as advance:
        for audio, clip in clips.items():
            _place(clip, staging / audio)
            advance(1)
    for name, questions in splits.items():
        if questions:
            (staging / f"{name}.jsonl").write_bytes(to_lines(questions))
    (staging / "left_out.jsonl").write_bytes(to_lines(built.left_out))
    text = json.dumps(manifest, indent=1, sort_keys=True)
    (staging / "manifest.json").write_text(f"{text}\n", encoding="utf-8")
    if output.exists():
        output.rmdir()  # it is empty
    staging.replace(output)


def _place(clip: Path, target: Path) -> None:
    """Give a clip a second name; a copy where the folder is on another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(clip.resolve())
    except OSError:
        shutil.copyfile(clip, target)


def _say(output: Path, manifest: Mapping[str, Any]) -> None:
    counts = manifest["counts"]
    num_left_out = sum(sum(found.values()) for found in manifest["left_out"].values())
    lines = [
        f"{output / name}.jsonl: {count['num_questions']} questions, {count['num_clips']} clips"
        for name, count in counts.items()
        if count["num_questions"]
    ]
    if num_left_out:
        lines.append(f"{num_left_out} rows left out, listed in {output / 'left_out.jsonl'}")
    train, held = counts[TRAIN]["by_category"], counts[HELDOUT]["by_category"]
    if counts[HELDOUT]["num_questions"]:
        lines += [
            f"{category or '(no category)'}: no held-out question, its clips are too few or copies "
            "of each other"
            for category, count in train.items()
            if count >= _MANY and category not in held
        ]
    for name, guesses in manifest["text_only"].items():
        for guesser, guess in guesses.items():
            is_high = guess["accuracy"] > guess["chance"] + _SUSPICIOUS
            if is_high and guess["num_questions"] >= _MANY:
                lines.append(
                    f"{name}: always the {guesser} choice is right {guess['accuracy']:.0%} of the "
                    f"time, chance is {guess['chance']:.0%}"
                )
    sys.stdout.write("\n".join(lines) + "\n")
