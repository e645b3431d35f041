"""Tests of examining many clips: every outcome is a result, processes and cache change nothing."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from mmar_jobs.datasets.clip_cache import NAME, ClipCache
from mmar_jobs.datasets.clip_facts import ClipFacts, measure
from mmar_jobs.datasets.clip_pool import Examined, Place, examine, examine_each
from mmar_jobs.errors import DataError, SettingsError, TryAgain
from mmar_jobs.manifest import sha256
from mmar_jobs.progress import no_bar
from tests.datasets.print_cases import print_of
from tests.datasets.sound_cases import melody, write_wav
from tests.fakes import Track


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty clips of half a second, and one of each kind that cannot be used."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(40):
        write_wav(folder / f"{i}.wav", melody(i, 0.5))
    write_wav(folder / "long.wav", melody(99, 3))
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "folder.wav").mkdir()
    return folder


NAMES = [f"{i}.wav" for i in range(40)]


def same(first: Examined, second: Examined) -> bool:
    """Equal facts and prints."""
    prints = [made.pack() if made else None for made in (first.made, second.made)]
    return first.facts == second.facts and first.problem == second.problem and len(set(prints)) == 1


def test_each_outcome_has_its_reason(clips: Path) -> None:
    """In the order of the paths, the same path twice; nothing raises for one file."""
    names = [
        "1.wav",
        "long.wav",
        "broken.wav",
        "empty.wav",
        "no.wav",
        "folder.wav",
        "../x",
        "1.wav",
    ]
    found = examine(names, Place(str(clips), max_clip_s=2), no_bar, jobs=1)
    assert found[0] == found[7]
    assert ("", 0.5) == (found[0].problem, found[0].facts.duration_s if found[0].facts else 0)
    assert sha256((clips / "1.wav").read_bytes()) == found[0].audio_sha256
    for result, says in zip(
        found[1:7],
        (
            "more than the limit of 2 s",
            "cannot be decoded",
            "is empty",
            "no.wav",
            "folder.wav",
            "..",
        ),
        strict=True,
    ):
        assert (None, None) == (result.facts, result.made)
        assert says in result.problem
        assert "\n" not in result.problem
    assert sha256(b"no sound") == found[2].audio_sha256
    assert "" == found[4].audio_sha256


def test_processes_change_nothing(clips: Path) -> None:
    """Two give what one gives; progress reaches its end."""
    track = Track()
    names = [*NAMES, "broken.wav"]
    alone = examine(names, Place(str(clips)), no_bar, jobs=1)
    together = examine(names, Place(str(clips)), track, jobs=2)
    assert all(map(same, alone, together))
    assert {"examining clips": 41} == track.done == track.totals


WORKERS = """
import os, signal, sys, threading, time
from mmar_jobs.datasets.clip_pool import Place, examine
from mmar_jobs.errors import DataError
from mmar_jobs.progress import no_bar


def workers():
    found = []
    for child in open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split():
        try:
            if "--process-name" in open(f"/proc/{child}/cmdline").read():
                found.append(int(child))
        except OSError:
            pass
    return found


def strike():
    while not workers():
        time.sleep(0.001)
    time.sleep(float(sys.argv[2]))
    ACT


if __name__ == "__main__":
    threading.Thread(target=strike, daemon=True).start()
    try:
        examine([f"{i}.wav" for i in range(40)], Place(sys.argv[1]), no_bar, jobs=2)
    except DataError as error:
        print(error)
"""


def run_until(act: str, folder: Path, clips: Path, after_s: float) -> CompletedProcess[str]:
    """Examine `clips` in a process of its own that does `act` so long after its first worker."""
    script = folder / "main.py"
    script.write_text(WORKERS.replace("ACT", act))
    command = [sys.executable, str(script), str(clips), str(after_s)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("after_s", [0, 0.05, 0.3])
def test_a_dead_worker_is_one_line(clips: Path, tmp_path: Path, after_s: float) -> None:
    """Killed for its memory, say, while others start or work: the batches in flight are told."""
    done = run_until("os.kill(workers()[0], signal.SIGKILL)", tmp_path, clips, after_s)
    assert 0 == done.returncode, done.stderr
    assert "a process that decodes clips died" in done.stdout
    assert "--jobs 1 shows which" in done.stdout


def test_workers_do_not_outlive_their_parent(clips: Path, tmp_path: Path) -> None:
    """Killed, the parent could not tell them to end."""
    act = "print(*workers(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    done = run_until(act, tmp_path, clips, 0.3)
    # It returned, so the last process that held its output has ended.
    assert -signal.SIGKILL == done.returncode
    assert 2 == len(done.stdout.split())


def test_sigterm_stops_after_what_is_measured_is_kept(clips: Path, tmp_path: Path) -> None:
    """TryAgain, and the next run finds in the cache what was done; the old handler is back."""
    place = Place(str(clips), cache=tmp_path / "cache")
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    with pytest.raises(TryAgain, match="run the same command again"):  # noqa: PT012 - a loop
        for name, _ in examine_each(NAMES, place, no_bar, jobs=1):
            seen.append(name)
            os.kill(os.getpid(), signal.SIGTERM)
    assert before == signal.getsignal(signal.SIGTERM)
    again = examine(NAMES, place, no_bar, jobs=1)
    assert NAMES[: len(seen)] == seen != NAMES
    assert [False] * len(seen) + [True] * (40 - len(seen)) == [result.is_new for result in again]


def test_another_thread_examines_without_signals(clips: Path) -> None:
    """Only the main thread may handle SIGTERM; elsewhere nothing is touched."""
    found: list[Examined] = []
    thread = threading.Thread(
        target=lambda: found.extend(examine(NAMES[:2], Place(str(clips)), no_bar, jobs=1))
    )
    thread.start()
    thread.join()
    assert ["", ""] == [result.problem for result in found]


def test_the_cache_answers_instead_of_the_decoder(clips: Path, tmp_path: Path) -> None:
    """What it holds for these bytes is believed, whatever the file's name; limits still count."""
    data = (clips / "3.wav").read_bytes()
    facts, made = measure(data, "x", max_s=None)
    odd = facts.model_copy(update={"peak_dbfs": -7.25})
    cache = ClipCache(tmp_path / "cache")
    cache.put([(odd, made)])
    cache.close()
    place = Place(str(clips), cache=tmp_path / "cache")
    [known, other] = examine(["3.wav", "4.wav"], place, no_bar, jobs=1)
    assert (odd, False) == (known.facts, known.is_new)
    assert other.is_new
    [refused] = examine(["3.wav"], Place(str(clips), None, 0, tmp_path / "cache"), no_bar, jobs=1)
    assert "" == refused.problem  # half a second of padding is allowed
    assert all(not result.is_new for result in examine(["3.wav", "4.wav"], place, no_bar, jobs=1))


def facts_of(name: str) -> ClipFacts:
    """Facts of a clip that does not exist."""
    numbers = dict.fromkeys(set(ClipFacts.model_fields) - {"audio_sha256"}, 1)
    return ClipFacts.model_validate({"audio_sha256": name} | numbers)


def test_a_cache_gives_back_what_was_put(tmp_path: Path) -> None:
    """Over a new connection; what is unknown is None; later facts replace earlier ones."""
    cache = ClipCache(tmp_path / "c")
    cache.put([(facts_of("a"), print_of(1)), (facts_of("b"), print_of(2))])
    cache.put([(facts_of("a"), print_of(3))])
    cache.close()
    cache = ClipCache(tmp_path / "c", read_only=True)
    found = cache.get("a")
    assert found is not None
    assert facts_of("a") == found[0]
    assert np.array_equal(print_of(3).sign_F, found[1].sign_F)
    assert cache.get("c") is None
    with pytest.raises(SettingsError, match="readonly"):
        cache.put([(facts_of("d"), print_of(4))])
    cache.close()


def test_damaged_and_old_entries_are_absent(tmp_path: Path) -> None:
    """Other versions' rows, cut prints and facts that are no JSON are measured again."""
    path = tmp_path / "c"
    cache = ClipCache(path)
    cache.put([(facts_of(name), print_of(1)) for name in "abc"])
    cache.close()
    with sqlite3.connect(path) as base:
        base.execute("UPDATE clips SET print = x'00112233' WHERE sha256 = 'a'")
        base.execute("UPDATE clips SET facts = '{' WHERE sha256 = 'b'")
        base.execute("UPDATE clips SET tag = '0/0' WHERE sha256 = 'c'")
    base.close()
    cache = ClipCache(path)
    assert [None] * 3 == [cache.get(name) for name in "abc"]
    cache.close()


def test_a_file_that_is_no_cache_is_a_setting(tmp_path: Path) -> None:
    """It is named, and never written over."""
    path = tmp_path / NAME
    path.write_text("my notes, many of them, in a file of that name")
    with pytest.raises(SettingsError, match="delete it, or choose another --cache"):
        ClipCache(path)
    assert path.read_text().startswith("my notes")
    with pytest.raises(SettingsError, match="cannot be used"):
        ClipCache(tmp_path / "no" / "folder")


def test_a_bucket_that_refuses_everything_is_no_clips_fault(clips: Path) -> None:
    """A wrong address raises at the first clip instead of naming every one of them."""
    with pytest.raises((SettingsError, DataError), match="ftp"):
        examine(["1.wav"], Place("ftp://x.org"), no_bar, jobs=1)
