"""TACOS: captions with onset and offset become questions of what is heard, and what first.

Not here: drawing the choices. Zenodo record 15379789: annotations_strong.csv has filename, text,
onset, offset (seconds); metadata.csv has filename, freesound_id, superclass, subclass and more. A
caption meets captions of other recordings of the same subclass; without metadata, of any.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from mmar_jobs.datasets.drafts import Draft, LeftOut, plain_id, row_files
from mmar_jobs.datasets.rows import Row, first_of, read_rows, text_of
from mmar_jobs.errors import DataError
from mmar_jobs.records import canonical

_CLEAR_S: Final = 0.5  # annotators mark onsets by hand; nearer ones are not in a sure order
_MOST_EVENTS: Final = 4


class _Event(NamedTuple):
    onset_s: float
    text: str


class _Recording(NamedTuple):
    freesound_id: str
    stratum: str


def read_tacos(path: Path, dataset: str, seed: int) -> Iterator[Draft | LeftOut]:
    """Up to two drafts a recording of a file, or of annotations_strong.csv below a folder."""
    files = row_files(path, "annotations_strong.csv")
    if not files:
        raise DataError(f"{path} has no annotations_strong.csv: give the file, or fetch it again")
    for file in files:
        recordings = _read_recordings(file.with_name("metadata.csv"))
        events: dict[str, list[_Event]] = {}
        for row in read_rows(file):
            try:
                name, event = _event(row)
                events.setdefault(name, []).append(event)
            except ValueError as error:
                yield LeftOut(source=dataset, row=f"{file.name} {row.number}", reason=str(error))
        for name, found in events.items():
            recording = recordings.get(name, _Recording("", ""))
            yield from _drafts(name, found, recording, dataset, seed)


def _event(row: Row) -> tuple[str, _Event]:
    if row.problem:
        raise ValueError(row.problem)
    name, text = text_of(row.value, ("filename",)), text_of(row.value, ("text",))
    try:
        onset_s = float(text_of(row.value, ("onset",)))
        offset_s = float(text_of(row.value, ("offset",)))
    except ValueError:
        raise ValueError("its onset or offset is not a number of seconds") from None
    if not (math.isfinite(offset_s) and 0 <= onset_s < offset_s):
        raise ValueError(f"its event from {onset_s:g} to {offset_s:g} s has no length")
    return name, _Event(onset_s, text)


def _read_recordings(path: Path) -> Mapping[str, _Recording]:
    if not path.is_file():
        return {}
    found: dict[str, _Recording] = {}
    for row in read_rows(path):
        _, name = first_of(row.value, ("filename",))
        _, freesound_id = first_of(row.value, ("freesound_id",))
        _, stratum = first_of(row.value, ("subclass", "superclass"))
        if name:
            found[str(name)] = _Recording(str(freesound_id or ""), str(stratum or ""))
    return found


def _drafts(
    name: str, events: list[_Event], recording: _Recording, dataset: str, seed: int
) -> Iterator[Draft]:
    first_by_text: dict[str, _Event] = {}
    for event in sorted(events):
        first_by_text.setdefault(canonical(event.text), event)
    ordered = sorted(first_by_text.values())
    owner = recording.freesound_id or name
    chosen = min(ordered, key=lambda event: _rank(seed, name, event.text))
    sources = (f"freesound:{recording.freesound_id}",) if recording.freesound_id else ()

    def draft(kind: str, text: str, answer: str, choices: tuple[str, ...] = ()) -> Draft:
        return Draft(
            id=plain_id(dataset, Path(name).stem, kind),
            audio=name,
            text=text,
            answer=answer,
            choices=choices,
            pool=f"heard {recording.stratum}",
            rule="owners",
            owner=owner,
            also_true=tuple(event.text for event in ordered),
            dataset=dataset,
            modality="sound",
            category=f"sound {kind}",
            sub_category=recording.stratum,
            source_ids=sources,
        )

    yield draft("heard", "Which of these can be heard in the recording?", chosen.text)
    clear = [event for event in ordered[1:] if event.onset_s >= ordered[0].onset_s + _CLEAR_S]
    if clear and len(clear) == len(ordered) - 1:
        choices = tuple(event.text for event in (ordered[0], *clear[: _MOST_EVENTS - 1]))
        yield draft("order", "Which of these is heard first?", ordered[0].text, choices)


def _rank(seed: int, name: str, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0tacos\0{name}\0{text}".encode()).digest()
