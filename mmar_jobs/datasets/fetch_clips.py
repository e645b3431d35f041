"""Many clips from many videos: each video once, in parallel, going on where it was cut off.

Not here: one video and one cut (clips.py), the folder's manifest (fetch.py).
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmar_jobs.artifact import file_sha256
from mmar_jobs.datasets.clip_list import Clip
from mmar_jobs.datasets.clips import (
    ClipForm,
    NotHad,
    cut,
    fetch_sound,
    require_ffmpeg,
    require_yt_dlp,
)
from mmar_jobs.datasets.download import Fetched, Missing, bare_url, interruptible_pool, stoppable
from mmar_jobs.progress import Advance

AUDIO: Final = "audio"
_SCRATCH: Final = ".video-"


@dataclass(frozen=True)
class ClipJob:
    """How clips are fetched; `cookies` is read by yt-dlp alone."""

    form: ClipForm
    num_workers: int
    cookies: Path | None = None
    max_video_bytes: int | None = None


def fetch_clips(
    clips: Sequence[Clip], folder: Path, job: ClipJob, *, advance: Advance = lambda _: None
) -> tuple[list[Fetched], list[Missing]]:
    """Cut every clip into `folder`/audio; what cannot be had is named and does not stop others.

    A clip that is there is not made again: it has its name only since it was whole.
    """
    require_ffmpeg()
    require_yt_dlp()
    (folder / AUDIO).mkdir(parents=True, exist_ok=True)

    for stale in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(stale)

    def fetch(url: str) -> list[Fetched | Missing]:
        checked = stoppable(advance, stop)
        results = _fetch_video(url, by_video[url], folder, job, lambda: checked(0))
        advance(len(results))
        return results

    by_video = _by_video(clips)
    with interruptible_pool(job.num_workers) as (pool, stop):
        results = [result for found in pool.map(fetch, by_video) for result in found]
    fetched = [result for result in results if isinstance(result, Fetched)]
    return fetched, [result for result in results if isinstance(result, Missing)]


def _by_video(clips: Sequence[Clip]) -> Mapping[str, list[Clip]]:
    by_video: dict[str, list[Clip]] = {}
    for clip in clips:
        by_video.setdefault(clip.url, []).append(clip)
    return by_video


def _fetch_video(
    url: str, clips: Sequence[Clip], folder: Path, job: ClipJob, check: Callable[[], None]
) -> list[Fetched | Missing]:
    targets = {clip: folder / AUDIO / f"{clip.name}.{job.form.format}" for clip in clips}
    left = [clip for clip, target in targets.items() if not target.is_file()]
    failures: dict[Clip, NotHad] = {}
    if left:
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch:
            try:
                source = fetch_sound(
                    url,
                    Path(scratch),
                    cookies=job.cookies,
                    max_bytes=job.max_video_bytes,
                    check=check,
                )
            except NotHad as error:
                failures = dict.fromkeys(left, error)
            else:
                failures = _cut_all(source, {clip: targets[clip] for clip in left}, job.form)
    return [
        _missing(clip, failures[clip]) if clip in failures else _fetched(clip, target, folder)
        for clip, target in targets.items()
    ]


def _cut_all(source: Path, targets: Mapping[Clip, Path], form: ClipForm) -> dict[Clip, NotHad]:
    failures: dict[Clip, NotHad] = {}
    for clip, target in targets.items():
        try:
            cut(source, target, start_s=clip.start_s, end_s=clip.end_s, form=form)
        except NotHad as error:
            failures[clip] = error
    return failures


def _fetched(clip: Clip, target: Path, folder: Path) -> Fetched:
    return Fetched(
        path=target.relative_to(folder).as_posix(),
        url=_address(clip),
        size_bytes=target.stat().st_size,
        sha256=file_sha256(target),
    )


def _missing(clip: Clip, error: NotHad) -> Missing:
    return Missing(
        what=clip.name, where=_address(clip), reason=str(error), is_transient=error.is_transient
    )


def _address(clip: Clip) -> str:
    """An address fit to be written down; of a query only YouTube's video id is kept."""
    bare = bare_url(clip.url)
    video = clip.name[:11]
    return f"{bare}?v={video}" if bare.endswith("youtube.com/watch") else bare
