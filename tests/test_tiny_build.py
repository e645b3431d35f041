"""The synthetic benchmark's files."""

import hashlib
import json
import wave
from dataclasses import replace
from pathlib import Path

import pytest

from mmar_jobs.audio import decode
from mmar_jobs.datasets.fingerprint import fingerprint
from mmar_jobs.datasets.guard import find_sounds
from mmar_jobs.tiny import build
from mmar_jobs.tiny.build import TinyWorld, build_world, draw_clip
from mmar_jobs.tiny.questions import Asked
from mmar_jobs.tiny.world import Clip

GOLDEN = "996dc2283d2b704986618587ff4bf4c59bbbc84721ddf18ebff9dfa49b514b9c"
KEYS = [
    *("id", "audio_path", "question", "choices", "answer", "modality", "category"),
    *("sub-category", "language", "source", "url", "timestamp"),
]


def _build(folder: Path, seed: int = 7) -> TinyWorld:
    return build_world(folder, seed=seed, num_train=60, num_heldout=21, num_benchmark=20)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_world_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """All files together have a pinned digest; another seed gives another world."""
    _build(tmp_path / "a")
    _build(tmp_path / "b", seed=8)
    assert GOLDEN == _digest(tmp_path / "a")
    assert GOLDEN != _digest(tmp_path / "b")


def test_rows_have_the_benchmarks_form(tmp_path: Path) -> None:
    """Every row has the keys of MMAR-meta and no trace, ids are unique, sizes are as asked."""
    world = _build(tmp_path)
    rows = [_rows(path) for path in (world.train, world.heldout, world.benchmark)]
    assert [60, 21, 20] == [len(split) for split in rows]
    assert all(KEYS == list(row) for split in rows for row in split)
    assert len({row["id"] for split in rows for row in split}) == 101
    assert "think" not in world.train.read_text(encoding="utf-8")


def test_no_clip_is_in_two_sets(tmp_path: Path) -> None:
    """Sets share neither a path nor the content of a clip, within a set clips are shared."""
    world = _build(tmp_path)
    clips = []
    for path in (world.train, world.heldout, world.benchmark):
        names = {str(row["audio_path"]) for row in _rows(path)}
        clips.append({hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in names})
        assert len(clips[-1]) == -(-len(_rows(path)) // 2)
    assert sum(map(len, clips)) == len(set.union(*clips))


def test_a_clip_that_sounds_like_one_of_another_set_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the dice give a held-out clip the sound of a train clip twice, the third draw is used.

    Its questions are the third draw's too: sound and answer must not be of two clips.
    """

    def draw(*key: str | int) -> tuple[Clip, tuple[Asked, ...]]:
        is_copy = key[1] == "heldout" and key[2] == 4 and key[3:] in ((), (1,))
        clip, asked = draw_clip(*((key[0], "train", 7) if is_copy else key))
        return replace(clip, num_channels=1) if is_copy else clip, asked

    monkeypatch.setattr(build, "draw_clip", draw)
    world = _build(tmp_path)
    paths = sorted((tmp_path / "audio").iterdir())
    prints = {
        path.stem: fingerprint(decode(path.read_bytes(), path.name).waveform) for path in paths
    }
    train = {name: made for name, made in prints.items() if "train" in name}
    assert not find_sounds({name: prints[name] for name in prints.keys() - train.keys()}, train)
    _, asked = draw_clip(7, "heldout", 4, 2)
    rows = {row["id"]: row["answer"] for row in _rows(world.heldout)}
    for place, question in enumerate(asked):
        assert rows[f"tiny-heldout-7-00004-{place}-{question.family}"] == question.answer


def test_clips_have_mixed_rates_and_channels(tmp_path: Path) -> None:
    """Seven sample rates, mono and stereo, two to three and a half seconds."""
    _build(tmp_path)
    rates, channels = set(), set()
    for path in (tmp_path / "audio").iterdir():
        with wave.open(str(path)) as file:
            rates.add(file.getframerate())
            channels.add(file.getnchannels())
            assert 2.0 < file.getnframes() / file.getframerate() < 3.5
    assert {8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000} == rates
    assert {1, 2} == channels
