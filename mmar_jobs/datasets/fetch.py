"""One data set into one folder: list, download, unpack, account for every row's clip.

Not here: flags (fetch_command.py). `manifest.json` is written last and says what is there, from
where, with which digest; `missing.jsonl` says what is not, and why. A folder is pinned to the
revision that it was begun with: a resumed fetch never mixes two.
"""

import fcntl
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from mmar_jobs.datasets.archive import Limits, unpack
from mmar_jobs.datasets.catalogue import Dataset
from mmar_jobs.datasets.clip_files import ClipFiles
from mmar_jobs.datasets.clip_list import Clip
from mmar_jobs.datasets.download import (
    STATE,
    Fetched,
    Missing,
    Patience,
    Wanted,
    bare_url,
    download_all,
    write_json,
)
from mmar_jobs.datasets.fetch_clips import ClipJob, fetch_clips
from mmar_jobs.datasets.hosts import Listing, list_files
from mmar_jobs.datasets.rows import SUFFIXES, first_of, read_rows
from mmar_jobs.errors import DataError, MmarError, SettingsError, TryAgain
from mmar_jobs.progress import Tracker

MANIFEST: Final = "manifest.json"
MISSING: Final = "missing.jsonl"
# The field that names a row's clip: MMAR, AudioSkills, MusicBench, TACOS.
_AUDIO: Final = ("audio_path", "sound", "location", "filename")
_MIB: Final = 1 << 20


class Outcome(NamedTuple):
    """What a fetch left: how much is there, and what is not."""

    num_files: int
    size_bytes: int
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class FetchJob:
    """How a data set is fetched; nothing of it changes what the folder holds."""

    track: Tracker
    num_workers: int = 8
    patience: Patience = field(default_factory=Patience)
    limits: Limits = field(default_factory=Limits)
    keep_archives: bool = True


def fetch_dataset(
    name: str,
    dataset: Dataset,
    folder: Path,
    job: FetchJob,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
) -> Outcome:
    """Fetch `dataset` into `folder`; raises where even the files of its rows cannot be had."""
    pinned = _pinned(folder)
    _check_same(folder, pinned, {"name": name})
    patterns = (*dataset.needed, *dataset.archives)
    asked = revision or pinned.get("revision")
    listing = list_files(dataset, patterns, revision=asked, endpoint=endpoint)
    recipe = {"name": name, "revision": listing.revision}
    _check_same(folder, pinned, recipe)
    _pin(folder, recipe)

    archives = [f for f in listing.files if f.path not in _needed(listing, dataset)]
    unpacked = {file.path: receipt for file in archives if (receipt := _unpacked(folder, file))}
    wanted = [file for file in listing.files if file.path not in unpacked]
    fetched, missing = _download(wanted, folder, job)
    _require(missing, listing, dataset, folder)
    for file in fetched:
        if file.path not in _needed(listing, dataset):
            unpacked[file.path] = _unpack(file, folder, dataset, job)
    missing += _unmatched(listing, dataset, unpacked)
    missing += _rows_without_clips(folder, _needed(listing, dataset))
    value = {
        "name": name,
        "host": bare_url(listing.endpoint),
        "repository": dataset.repository,
        "revision": listing.revision,
        "licence": listing.licence or "not stated by the host",
        "files": [file.model_dump() for file in fetched],
        "unpacked": [unpacked[path] for path in sorted(unpacked)],
    }
    return _finish(folder, value, fetched, missing)


def fetch_audio(
    clips: Sequence[Clip],
    folder: Path,
    clip_job: ClipJob,
    track: Tracker,
    *,
    bad: Sequence[Missing],
) -> Outcome:
    """Cut `clips` out of their videos into `folder`/audio; `bad` are rows that named none."""
    recipe = {"name": "audio", "form": clip_job.form._asdict()}
    _check_same(folder, _pinned(folder), recipe)
    _pin(folder, recipe)
    with track("clips", len(clips)) as advance:
        fetched, missing = fetch_clips(clips, folder, clip_job, advance=advance)
    value = recipe | {
        "licence": "that of each video",
        "files": [file.model_dump() for file in fetched],
    }
    return _finish(folder, value, fetched, [*bad, *missing])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder; raises TryAgain where another fetch is under way in it.

    The kernel lets go of the lock however this process ends.
    """
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    with (folder / STATE / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgain(f"another fetch is under way in {folder}: wait for its end") from None
        yield


def _finish(
    folder: Path, value: Mapping[str, Any], fetched: Sequence[Fetched], missing: Sequence[Missing]
) -> Outcome:
    lines = "".join(f"{entry.model_dump_json()}\n" for entry in missing)
    (folder / MISSING).write_text(lines, encoding="utf-8")
    size_bytes = sum(file.size_bytes for file in fetched)
    counts = {"num_files": len(fetched), "size_bytes": size_bytes, "num_missing": len(missing)}
    write_json(folder / MANIFEST, dict(value) | {"counts": counts})
    return Outcome(len(fetched), size_bytes, tuple(missing))


def _pinned(folder: Path) -> dict[str, Any]:
    path = folder / STATE / "recipe.json"
    if not path.exists():
        return {}
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _pin(folder: Path, recipe: Mapping[str, Any]) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # nothing looks finished before it is
    write_json(folder / STATE / "recipe.json", dict(recipe))


def _check_same(folder: Path, pinned: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    for key, value in recipe.items():
        if key in pinned and pinned[key] != value:
            raise SettingsError(
                f"{folder} holds {key} {pinned[key]}, not {value}: choose another folder"
            )


def _needed(listing: Listing, dataset: Dataset) -> set[str]:
    return {file.path for file in listing.files if file.path in dataset.needed}


def _download(
    wanted: Sequence[Wanted], folder: Path, job: FetchJob
) -> tuple[list[Fetched], list[Missing]]:
    size_bytes = sum(file.size_bytes or 0 for file in wanted)
    free_bytes = shutil.disk_usage(_existing(folder)).free
    begun = [*(folder / file.path for file in wanted), *(folder / STATE).glob("*.part")]
    begun_bytes = sum(path.stat().st_size for path in begun if path.is_file())
    if size_bytes - begun_bytes > free_bytes:
        raise TryAgain(
            f"{folder} has {free_bytes >> 20} MiB free, the download needs up to "
            f"{(size_bytes - begun_bytes) >> 20} MiB: free space, then run the same command again"
        )
    with job.track("downloading, MiB", max(1, size_bytes // _MIB)) as advance:
        rest, lock = 0, threading.Lock()

        def advance_bytes(num_bytes: int) -> None:
            nonlocal rest
            with lock:
                num_mib, rest = divmod(rest + num_bytes, _MIB)
            advance(num_mib)

        return download_all(
            wanted,
            folder,
            num_workers=job.num_workers,
            patience=job.patience,
            advance=advance_bytes,
        )


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _require(missing: Sequence[Missing], listing: Listing, dataset: Dataset, folder: Path) -> None:
    """Raise where a file of rows cannot be had: clips alone are no data set."""
    for entry in missing:
        if entry.what in dataset.needed:
            kind: type[MmarError] = TryAgain if entry.is_transient else DataError
            raise kind(f"{entry.where}: {entry.reason}; what was fetched is kept in {folder}")
    for pattern in dataset.needed:
        if pattern in listing.unmatched:
            raise DataError(
                f"{dataset.repository} at revision {listing.revision} has no {pattern}: "
                "choose another --revision"
            )


def _receipt(folder: Path, path: str) -> Path:
    return folder / STATE / f"unpacked-{path.replace('/', '_')}.json"


def _unpacked(folder: Path, file: Wanted) -> dict[str, Any] | None:
    """What an earlier run unpacked of this very archive, where the archive is gone since."""
    path = _receipt(folder, file.path)
    if not path.exists() or (folder / file.path).exists():
        return None
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value if value["url"] == bare_url(file.url) else None


def _unpack(file: Fetched, folder: Path, dataset: Dataset, job: FetchJob) -> dict[str, Any]:
    receipt = _receipt(folder, file.path)
    archive = folder / file.path
    if receipt.exists():
        value: dict[str, Any] = json.loads(receipt.read_text(encoding="utf-8"))
        if value["sha256"] == file.sha256:
            return value
    with job.track(f"unpacking {archive.name}", 0) as advance:
        found = unpack(archive, folder, limits=job.limits, advance=advance)
    _lift(folder, dataset.top_folder)
    value = {"archive": file.path, "url": file.url, "sha256": file.sha256} | found._asdict()
    write_json(receipt, value)
    if not job.keep_archives:
        archive.unlink()
    return value


def _lift(folder: Path, top_folder: str) -> None:
    """Put clips where the rows say, where the archive has them in another folder or in none."""
    target = folder / top_folder
    if not top_folder or target.exists():
        return
    deeper = [path for path in folder.glob(f"*/{top_folder}") if path.is_dir()]
    others = {path.parent for path in folder.glob("*/*.wav")}
    if len(deeper) == 1:
        deeper[0].replace(target)
    elif len(others) == 1:
        others.pop().replace(target)
    elif not others:
        target.mkdir()
        for path in folder.glob("*.wav"):
            path.replace(target / path.name)


def _unmatched(
    listing: Listing, dataset: Dataset, unpacked: Mapping[str, Any]
) -> Iterator[Missing]:
    if unpacked or any(pattern not in listing.unmatched for pattern in dataset.archives):
        return
    yield Missing(
        what=" or ".join(dataset.archives),
        where=f"{bare_url(listing.endpoint)} {dataset.repository} {listing.revision}",
        reason=f"no archive of clips there{f': {dataset.hint}' if dataset.hint else ''}",
    )


def _rows_without_clips(folder: Path, needed: set[str]) -> Iterator[Missing]:
    clips = ClipFiles(folder)
    if not clips:
        return
    seen: set[str] = set()
    for path in sorted(needed):
        if not path.endswith(SUFFIXES):
            continue
        for row in read_rows(folder / path):
            named, value = first_of(row.value, _AUDIO)
            name = str(value)
            if not named or name in seen:
                continue
            seen.add(name)
            if clips.find(name) is None:
                reason = "no such clip in what was unpacked"
                yield Missing(
                    what=name,
                    where=f"{path} row {row.number}",
                    reason=reason,
                )
