"""`mmar-jobs data fetch`: the flags, and what is said at the end.

Not here: the work (fetch.py). Partial success is success with a list of what is missing, unless
--require-all.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from mmar_jobs.datasets.archive import Limits
from mmar_jobs.datasets.catalogue import CATALOGUE
from mmar_jobs.datasets.clip_list import parse_clips
from mmar_jobs.datasets.clips import ClipForm
from mmar_jobs.datasets.download import Missing, Patience
from mmar_jobs.datasets.fetch import MISSING, FetchJob, Outcome, alone, fetch_audio, fetch_dataset
from mmar_jobs.datasets.fetch_clips import ClipJob
from mmar_jobs.datasets.rows import read_rows
from mmar_jobs.errors import DataError, ExitCode, SettingsError, TryAgain
from mmar_jobs.progress import Tracker, bars, no_bar
from mmar_jobs.store.disk import explained

_AUDIO: Final = "audio"
_GIB: Final = 1 << 30


def add_fetch_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `data fetch`."""
    parser.add_argument(
        "name",
        choices=(*CATALOGUE, _AUDIO),
        help="a data set, or `audio` for clips of videos that --clips lists",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where it goes")
    for flag, kind, default, text in (
        ("--revision", str, None, "commit or tag on the Hub (default: the newest, then pinned)"),
        ("--endpoint", str, None, "a mirror instead of the data set's own host (default: none)"),
        ("--workers", int, 8, "downloads at once (default: %(default)s)"),
        ("--retries", int, 5, "further attempts for each file (default: %(default)s)"),
        ("--max-unpacked-gib", float, 256, "largest archive, unpacked (default: %(default)s)"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=text)
    parser.add_argument(
        "--delete-archives",
        action="store_true",
        help="delete each archive once it is unpacked (default: keep)",
    )
    parser.add_argument(
        "--require-all",
        action="store_true",
        help="fail where anything is missing (default: list it in missing.jsonl, exit 0)",
    )
    _add_clip_arguments(parser.add_argument_group("for `audio`"))


def _add_clip_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--clips",
        type=Path,
        default=None,
        help="CSV, TSV, JSON, JSONL or parquet with video, start and end (default: none)",
    )
    group.add_argument(
        "--rate-hz",
        type=int,
        default=16_000,
        help="sample rate in mono; 0 keeps the video's rate and channels (default: %(default)s)",
    )
    group.add_argument(
        "--format", choices=("flac", "wav"), default="flac", help="(default: %(default)s)"
    )
    for flag, kind, default, text in (
        ("--clip-s", float, 10.0, "length where a row has no end, s (default: %(default)s)"),
        ("--max-clip-s", float, 30.0, "longest clip, s (default: %(default)s)"),
        ("--max-video-mib", int, 512, "largest download of one video (default: %(default)s)"),
        ("--cookies", Path, None, "cookies.txt for yt-dlp, never recorded (default: none)"),
    ):
        group.add_argument(flag, type=kind, default=default, help=text)


def fetch(chosen: argparse.Namespace) -> int:
    """Fetch one data set, print what is there and what is not."""
    _check(chosen)
    with explained("write", str(chosen.folder)):
        chosen.folder.mkdir(parents=True, exist_ok=True)
    with alone(chosen.folder):
        outcome = _fetch_audio(chosen) if chosen.name == _AUDIO else _fetch_dataset(chosen)
    size_mib = outcome.size_bytes / (1 << 20)
    sys.stdout.write(f"{chosen.folder}: {outcome.num_files} files, {size_mib:.1f} MiB\n")
    missing = outcome.missing
    if not missing:
        return ExitCode.DONE
    first = f"{missing[0].what}: {missing[0].reason}"
    said = f"{len(missing)} not had, listed in {chosen.folder / MISSING} (first: {first})"
    if chosen.require_all or not outcome.num_files:
        is_transient = any(entry.is_transient for entry in missing)
        again = "run the same command again" if is_transient else "correct them or leave them out"
        raise (TryAgain if is_transient else DataError)(f"{said}: {again}")
    sys.stdout.write(f"{said}\n")
    return ExitCode.DONE


def _check(chosen: argparse.Namespace) -> None:
    for name in ("workers", "max_unpacked_gib", "clip_s", "max_clip_s", "max_video_mib"):
        if not getattr(chosen, name) > 0:
            raise SettingsError(f"--{name.replace('_', '-')} must be positive")
    for name in ("retries", "rate_hz"):
        if getattr(chosen, name) < 0:
            raise SettingsError(f"--{name.replace('_', '-')} must not be negative")
    if (chosen.name == _AUDIO) != (chosen.clips is not None):
        raise SettingsError("--clips FILE belongs to `fetch audio`, which needs it")
    if chosen.name == _AUDIO and (chosen.revision or chosen.endpoint):
        raise SettingsError("--revision and --endpoint are not for `fetch audio`")


def _tracker() -> Tracker:
    console = Console(stderr=True)
    return bars(console) if console.is_terminal else no_bar


def _fetch_dataset(chosen: argparse.Namespace) -> Outcome:
    job = FetchJob(
        track=_tracker(),
        num_workers=chosen.workers,
        patience=Patience(num_retries=chosen.retries),
        limits=Limits(total_bytes=int(chosen.max_unpacked_gib * _GIB)),
        keep_archives=not chosen.delete_archives,
    )
    return fetch_dataset(
        chosen.name,
        CATALOGUE[chosen.name],
        chosen.folder,
        job,
        revision=chosen.revision,
        endpoint=chosen.endpoint,
    )


def _fetch_audio(chosen: argparse.Namespace) -> Outcome:
    clips, bad = parse_clips(
        read_rows(chosen.clips), clip_s=chosen.clip_s, max_clip_s=chosen.max_clip_s
    )
    if not clips:
        why = f" (row {bad[0].number}: {bad[0].reason})" if bad else ""
        raise DataError(f"{chosen.clips} names no clip{why}")
    if chosen.cookies is not None and not chosen.cookies.is_file():
        raise SettingsError(f"--cookies {chosen.cookies} is not a file")
    job = ClipJob(
        form=ClipForm(chosen.rate_hz, chosen.format),
        num_workers=chosen.workers,
        cookies=chosen.cookies,
        max_video_bytes=chosen.max_video_mib << 20,
    )
    rows = [
        Missing(what=f"row {row.number}", where=chosen.clips.name, reason=row.reason) for row in bad
    ]
    return fetch_audio(clips, chosen.folder, job, _tracker(), bad=rows)
