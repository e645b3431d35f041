"""Names of the recording behind a clip, by which a training question can betray the benchmark.

Not here: the comparison itself (filter), and audio fingerprints. Two clips of one video share a
source id whatever part of it they show: a model must not have trained on either.
"""

import re
from typing import Final
from urllib.parse import urlsplit

_YOUTUBE: Final = re.compile(
    r"(?:youtube(?:-nocookie)?\.com/(?:watch\?(?:[^#]*&)?v=|shorts/|embed/|live/|v/)|youtu\.be/)"
    r"([\w-]{11})(?![\w-])"
)
_BILIBILI: Final = re.compile(r"bilibili\.com/(?:video/)?(BV[0-9A-Za-z]{10})(?![0-9A-Za-z])")
# Clip names of the benchmark are <video id>_<from>_<to> with times as hh-mm-ss.
_CLIP: Final = re.compile(
    r"(?<![\w-])(?:(BV[0-9A-Za-z]{10})|([\w-]{11}))_\d\d-\d\d-\d\d_\d\d-\d\d-\d\d(?!\d)"
)


def source_ids(url: str, *names: str) -> tuple[str, ...]:
    """Find what `url` and `names` (question ids, file names) say about where a clip comes from.

    Sorted `youtube:<id>`, `bilibili:<id>` or, for any other address, `web:<host/path>`; may be
    empty.
    """
    found = set(_of_url(url))
    for name in names:
        if match := _CLIP.search(name):
            found.add(f"bilibili:{match[1]}" if match[1] else f"youtube:{match[2]}")
    return tuple(sorted(found))


def _of_url(url: str) -> list[str]:
    if match := _YOUTUBE.search(url):
        return [f"youtube:{match[1]}"]
    if match := _BILIBILI.search(url):
        return [f"bilibili:{match[1]}"]
    try:
        parts = urlsplit(url)
    except ValueError:
        return []
    return [f"web:{parts.netloc.lower()}{parts.path}".rstrip("/")] if parts.netloc else []
