"""The list of clips to cut out of videos, as the known caption data sets write it.

Not here: reading files (rows.py), cutting (clips.py). Known: MusicCaps (ytid, start_s, end_s),
AudioCaps (youtube_id, start_time, ten seconds long), AudioSet (YTID, start_seconds, end_seconds),
MMAR (url, timestamp as "hh:mm:ss,hh:mm:ss").
"""

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from mmar_jobs.datasets.rows import Row, first_of, seconds_of, text_of

_VIDEO: Final = ("ytid", "YTID", "youtube_id", "video_id", "url")
_START: Final = ("start_s", "start_time", "start_seconds", "start")
_END: Final = ("end_s", "end_time", "end_seconds", "end")
_DURATION: Final = ("duration_s", "duration")
_YOUTUBE_ID: Final = re.compile(r"[\w-]{11}")
_UNSAFE: Final = re.compile(r"[^\w-]+")


class Clip(NamedTuple):
    """One clip to have: `name` is its file's name without suffix, and says video and times."""

    name: str
    url: str
    start_s: float
    end_s: float


class BadClip(NamedTuple):
    """A row that names no clip."""

    number: int
    reason: str


def parse_clips(
    rows: Iterable[Row], *, clip_s: float, max_clip_s: float
) -> tuple[list[Clip], list[BadClip]]:
    """The clips that rows name, each once, and the rows that name none.

    `clip_s` seconds is the length where a row gives only a start; a row without any start is bad:
    0 would be a guess.
    """
    clips: dict[str, Clip] = {}
    bad: list[BadClip] = []
    for row in rows:
        try:
            clip = _clip(row, clip_s, max_clip_s)
            clips.setdefault(clip.name, clip)
        except ValueError as error:
            bad.append(BadClip(row.number, str(error)))
    return list(clips.values()), bad


def _clip(row: Row, clip_s: float, max_clip_s: float) -> Clip:
    if row.problem:
        raise ValueError(row.problem)
    video = text_of(row.value, _VIDEO)
    start_s, end_s = _times(row.value, clip_s)
    if not end_s > start_s:
        raise ValueError(f"its clip ends at {end_s:g} s, not after its start at {start_s:g} s")
    if end_s - start_s > max_clip_s:
        raise ValueError(f"its clip lasts {end_s - start_s:g} s, more than {max_clip_s:g} s")
    is_id = _YOUTUBE_ID.fullmatch(video) is not None
    url = f"https://www.youtube.com/watch?v={video}" if is_id else video
    if "://" not in url:
        raise ValueError(f"its video {video[:60]!r} is neither a YouTube id nor an address")
    return Clip(_name(video if is_id else _key(url), start_s, end_s), url, start_s, end_s)


def _times(row: Any, clip_s: float) -> tuple[float, float]:
    _, both = first_of(row, ("timestamp",))
    if isinstance(both, str) and both.count(",") == 1:
        start, end = both.split(",")
        row = {"start_s": start, "end_s": end}
    start_s = seconds_of(row, _START)
    if start_s is None:
        raise ValueError(f"has no {' or '.join(_START)}")
    end_s = seconds_of(row, _END)
    if end_s is None:
        end_s = start_s + (seconds_of(row, _DURATION) or clip_s)
    return start_s, end_s


def _key(url: str) -> str:
    """A video's part of a file name; the id where the address is YouTube's."""
    found = re.search(r"(?:v=|youtu\.be/|shorts/|embed/)([\w-]{11})(?![\w-])", url)
    if found:
        return found[1]
    return _UNSAFE.sub("_", url.partition("://")[2]).strip("_")[:120]


def _name(key: str, start_s: float, end_s: float) -> str:
    """As the benchmark names clips, so that the guard reads the video's id off the name."""
    name = f"{key}_{_clock(start_s)}_{_clock(end_s)}"
    if start_s.is_integer() and end_s.is_integer():
        return name
    return f"{name}_{round(start_s * 1000)}-{round(end_s * 1000)}"


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(int(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}-{minutes:02d}-{seconds:02d}"
