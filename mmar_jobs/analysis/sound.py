"""Where a page finds the clip of a question: inside itself, or in a file beside it.

Not here: decoding (audio.py), the player (the templates).
"""

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from mmar_jobs.audio import ClipReader
from mmar_jobs.errors import MmarError
from mmar_jobs.records import Question
from mmar_jobs.store import join_uri
from mmar_jobs.store.uri import parse_uri

_MEDIA_TYPES: Final = ((b"RIFF", "audio/wav"), (b"fLaC", "audio/flac"), (b"OggS", "audio/ogg"))


@dataclass(frozen=True)
class Sound:
    """What a player plays, empty for nothing, and what is said beside it."""

    src: str
    note: str


class Sounds:
    """Clips below `audio_root` for a page at `page`; the first `embed_bytes` of them go into it."""

    def __init__(self, audio_root: str, page: Path, *, embed_bytes: int) -> None:
        self._root = audio_root
        self._page = page
        self._left = embed_bytes
        self._clips = ClipReader(audio_root)

    def find(self, question: Question) -> Sound:
        """The clip of a question; one that cannot be read is said, not raised."""
        try:
            data = self._clips.read_bytes(question)
        except MmarError as error:
            return Sound("", f"The clip cannot be played: {error}")
        if len(data) <= self._left:
            self._left -= len(data)
            kind = next((kind for magic, kind in _MEDIA_TYPES if data.startswith(magic)), None)
            encoded = base64.b64encode(data).decode()
            return Sound(f"data:{kind or 'audio/mpeg'};base64,{encoded}", "")
        return self._linked(question)

    def _linked(self, question: Question) -> Sound:
        audio = question.audio
        address = parse_uri(audio if "://" in audio else join_uri(self._root, audio))
        if address.scheme != "file":
            return Sound("", f"The clip is too large for this page: {audio}")
        relative = os.path.relpath(address.path, self._page.resolve().parent)
        return Sound(f"./{quote(relative)}", f"Played from {relative}")
