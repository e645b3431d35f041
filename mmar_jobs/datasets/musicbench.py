"""MusicBench and MusicCaps: captions and measured key and tempo become multiple choice.

Not here: drawing the choices. Card of amaai-lab/MusicBench: location (data/<video>.wav, or
data_aug2/<video>_<n>.wav for an augmented copy), main_caption, alt_caption, prompt_* sentences,
bpm, key as [tonic, mode], keyprob as [probability]. MusicCaps: ytid, start_s, end_s, caption. Key
and tempo are measured by programs, so an unsure key is left out and tempi an octave apart never
meet.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mmar_jobs.datasets.clip_list import parse_clips
from mmar_jobs.datasets.drafts import Draft, LeftOut, plain_id, row_files
from mmar_jobs.datasets.rows import Row, number_of, read_rows, text_of
from mmar_jobs.errors import DataError

_CAPTION: Final = ("main_caption", "caption", "alt_caption")
_MIN_KEY_PROBABILITY: Final = 0.6
_LONGEST_CAPTION: Final = 700
_MODES: Final = frozenset({"major", "minor"})
_TONIC: Final = re.compile(r"[A-G][#b]?")
# A caption meets captions of the same genre, by the first of these words in it.
_GENRES: Final = (
    ("hip hop", r"hip[ -]?hop|rap|trap"),
    ("electronic", r"electronic|techno|house|edm|dubstep|synth\w*"),
    ("metal", r"metal|grunge|punk"),
    ("jazz", r"jazz\w*|swing|bossa nova|blues"),
    ("classical", r"classical|orchestra\w*|symphon\w*|opera|string quartet"),
    ("reggae", r"reggae\w*|ska|dub"),
    ("folk", r"folk|country|bluegrass|acoustic"),
    ("gospel", r"gospel|choir|soul|r&b|funk"),
    ("ambient", r"ambient|meditat\w*|atmospheric"),
    ("pop", r"pop"),
    ("rock", r"rock"),
)
_GENRE: Final = [(name, re.compile(rf"\b(?:{words})\b", re.IGNORECASE)) for name, words in _GENRES]


def read_musicbench(path: Path, dataset: str, seed: int) -> Iterator[Draft | LeftOut]:
    """Up to three drafts a row of a file, or of the training rows below a folder."""
    del seed
    files = row_files(path, "MusicBench_train*.json", "musiccaps*.csv")
    if not files:
        raise DataError(f"{path} has no MusicBench_train.json: give the file, or fetch it again")
    for file in files:
        for row in read_rows(file):
            place = f"{file.name} {row.number}"
            try:
                yield from _drafts(row, dataset, place)
            except ValueError as error:
                yield LeftOut(source=dataset, row=place, reason=str(error))


def _drafts(row: Row, dataset: str, place: str) -> Iterator[Draft | LeftOut]:
    if row.problem:
        raise ValueError(row.problem)
    audio, video = _clip(row)
    asked = (("caption", _caption), ("key", _key), ("tempo", _tempo))
    for kind, make in asked:
        try:
            made = make(row.value)
        except ValueError as error:
            yield LeftOut(source=dataset, row=place, reason=str(error))
            continue
        if made is None:
            continue
        text, answer, pool = made
        yield Draft(
            id=plain_id(dataset, Path(audio).with_suffix("").as_posix(), kind),
            audio=audio,
            text=text,
            answer=answer,
            pool=pool,
            rule="owners" if kind == "caption" else "tempo" if kind == "tempo" else "any",
            owner=video,
            dataset=dataset,
            modality="music",
            category=f"music {kind}",
            source_ids=(f"youtube:{video}",),
        )


def _clip(row: Row) -> tuple[str, str]:
    """The clip's path and the id of its video."""
    if row.value.get("ytid"):
        clips, bad = parse_clips([row], clip_s=10.0, max_clip_s=30.0)
        if bad:
            raise ValueError(bad[0].reason)
        return f"audio/{clips[0].name}.flac", text_of(row.value, ("ytid",))
    location = text_of(row.value, ("location",))
    video = Path(location).stem[:11]
    if len(video) < 11:
        raise ValueError(f"its location {location[:60]!r} does not begin with a video's id")
    return location, video


def _caption(row: Any) -> tuple[str, str, str]:
    caption = text_of(row, _CAPTION).strip('"')
    if len(caption) > _LONGEST_CAPTION:
        raise ValueError(f"its caption has more than {_LONGEST_CAPTION} characters")
    genre = next((name for name, words in _GENRE if words.search(caption)), "other")
    return "Which description fits this music?", caption, f"caption {genre}"


def _key(row: Any) -> tuple[str, str, str] | None:
    key, probability = row.get("key"), row.get("keyprob")
    if not key:
        return None
    if not (isinstance(key, list) and len(key) == 2 and all(isinstance(k, str) for k in key)):
        raise ValueError("its key is not [tonic, mode]")
    if key[1] not in _MODES:
        raise ValueError(f"its mode {key[1]!r} is neither major nor minor")
    if not _TONIC.fullmatch(key[0]):
        raise ValueError(f"its key {key[0]!r} is not a tonic")
    if not (isinstance(probability, list) and probability):
        raise ValueError("its keyprob is not [probability]")
    if not number_of("keyprob", probability[0]) >= _MIN_KEY_PROBABILITY:
        raise ValueError(f"its key was measured with less than {_MIN_KEY_PROBABILITY} certainty")
    return "What key is this music in?", f"{key[0]} {key[1]}", "key"


def _tempo(row: Any) -> tuple[str, str, str] | None:
    bpm = row.get("bpm")
    if bpm is None or bpm == "":
        return None
    value = number_of("bpm", bpm)
    if not 30 <= value <= 300:
        raise ValueError(f"its bpm {bpm} is not from 30 to 300")
    return "What is the tempo of this music?", f"{round(value)} beats per minute", "tempo"
