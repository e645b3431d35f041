"""Clips cut out of videos: yt-dlp gets the sound, ffmpeg cuts it at its own start.

Not here: which clips (clip_list.py), how many at once (fetch_clips.py). Only this imports yt_dlp.
The sound is decoded from its beginning up to the cut: seeking in a compressed file is only as exact
as its index, and an earlier attempt that cut at 0 paired every caption with another sound.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from mmar_jobs.errors import SettingsError

TOLERANCE_S: Final = 0.25
_CUT_TIMEOUT_S: Final = 900.0
_CODECS: Final = {"flac": ["-c:a", "flac"], "wav": ["-c:a", "pcm_s16le"]}
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_PASSING: Final = re.compile(
    r"HTTP Error (?:408|425|429|5\d\d)|timed? ?out|Connection|Temporary failure|resolve|rate-limit",
    re.IGNORECASE,
)


class ClipForm(NamedTuple):
    """How a clip is stored: `rate_hz` and mono, or as the source has it where `rate_hz` is 0."""

    rate_hz: int
    format: Literal["flac", "wav"]


class NotHad(Exception):
    """Why a sound could not be had or cut; `is_transient` where it may be had later."""

    def __init__(self, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.is_transient = is_transient


def require_ffmpeg() -> str:
    """The path of ffmpeg, or a SettingsError before anything is downloaded."""
    found = shutil.which("ffmpeg")
    if found is None:
        raise SettingsError("clips are cut by ffmpeg, which is not on PATH: install it")
    return found


def require_yt_dlp() -> None:
    """Raise SettingsError where yt-dlp is not installed."""
    try:
        import_module("yt_dlp")
    except ModuleNotFoundError:
        raise SettingsError("videos are read by yt-dlp: install mmar-jobs[data]") from None


def cut(source: Path, target: Path, *, start_s: float, end_s: float, form: ClipForm) -> None:
    """Write the sound of `source` from `start_s` to `end_s` seconds to `target`.

    `target` appears only when it is whole. Raises NotHad where the source has no sound, cannot be
    decoded or ends more than 0.25 s before `end_s`.
    """
    part = target.with_name(f".{target.name}.part.{form.format}")
    converted = ["-ac", "1", "-ar", str(form.rate_hz)] if form.rate_hz else []
    command = [
        *(require_ffmpeg(), "-nostdin", "-hide_banner", "-loglevel", "error", "-y"),
        # A downloaded playlist must not make ffmpeg read other files or addresses.
        *("-protocol_whitelist", "file", "-i", f"file:{source}"),
        *("-map", "0:a:0", "-ss", f"{start_s:.6f}", "-t", f"{end_s - start_s:.6f}"),
        *(*converted, "-sample_fmt", "s16", *_CODECS[form.format]),
        *("-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact", f"file:{part}"),
    ]
    try:
        result = subprocess.run(  # noqa: S603 - a list, no shell
            command, capture_output=True, text=True, timeout=_CUT_TIMEOUT_S, check=False
        )
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise NotHad(f"ffmpeg cannot cut it ({last[:160]})")
        _check_length(part, end_s - start_s, start_s)
        part.replace(target)
    except subprocess.TimeoutExpired:
        raise NotHad(f"ffmpeg took more than {_CUT_TIMEOUT_S:g} s", is_transient=True) from None
    finally:
        part.unlink(missing_ok=True)


def _check_length(part: Path, wanted_s: float, start_s: float) -> None:
    from mmar_jobs.audio import decode  # noqa: PLC0415 - numpy
    from mmar_jobs.errors import DataError  # noqa: PLC0415 - keeps this import beside its use

    try:
        got_s = decode(part.read_bytes(), part.name, max_s=wanted_s + 1).duration_s
    except DataError:
        raise NotHad(f"ends before {start_s:.2f} s, where the clip starts") from None
    if got_s < wanted_s - TOLERANCE_S:
        raise NotHad(f"ends {start_s + got_s:.2f} s in, the clip needs {start_s + wanted_s:.2f} s")


class _Quiet:
    """A logger for yt-dlp that keeps silent: errors come as exceptions."""

    def debug(self, text: str) -> None:
        """Ignore."""

    info = warning = error = debug


def fetch_sound(
    url: str,
    folder: Path,
    *,
    cookies: Path | None = None,
    max_bytes: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Download the best sound of one video below `folder` and return its file.

    `check` is called as data arrive, and may raise to stop.
    Raises NotHad with yt-dlp's reason: private, removed, not in this country, no sound, …
    """
    yt_dlp: Any = import_module("yt_dlp")  # heavy, untyped, and of the extra `data`
    options: dict[str, Any] = {
        "format": "bestaudio/best",
        "outtmpl": str(folder / "sound.%(ext)s"),
        "noplaylist": True,
        "playlist_items": "1",
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": _Quiet(),
        "cachedir": False,
        "fixup": "never",
        "progress_hooks": [lambda _: check()],
        "socket_timeout": 30,
        "retries": 3,
        "match_filter": yt_dlp.utils.match_filter_func("!is_live"),
    }
    if cookies is not None:
        # yt-dlp writes the cookies back, and threads would write over each other.
        options["cookiefile"] = str(shutil.copy(cookies, folder / "cookies.txt"))
    if max_bytes is not None:
        options["max_filesize"] = max_bytes
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            downloader.extract_info(url)
    except yt_dlp.utils.YoutubeDLError as error:
        reason = _reason(error)
        raise NotHad(reason, is_transient=bool(_PASSING.search(reason))) from None
    found = sorted(path for path in folder.glob("sound.*") if path.suffix != ".part")
    if not found:
        raise NotHad("yt-dlp left nothing: it is live, too large or without sound")
    return found[0]


def _reason(error: Exception) -> str:
    text = _COLOUR.sub("", str(error)).removeprefix("ERROR: ")
    return " ".join(text.split())[:200]
