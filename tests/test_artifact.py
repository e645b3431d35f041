"""Tests of artifacts: nothing looks finished before it is, or is overwritten, or read unchecked."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmar_jobs.artifact import (
    MANIFEST,
    PLAN,
    Artifact,
    Draft,
    begin,
    find_artifact,
    parse_records,
    require_artifact,
)
from mmar_jobs.errors import DataError, GateError, SettingsError
from mmar_jobs.manifest import plan_shards
from mmar_jobs.records import Question
from mmar_jobs.store import Store, open_store
from tests.fakes import make_question

KEY = "runs/r/questions"
RECIPE = {"sampling": {"top_p": 0.95, "seed": 0}}
QUESTIONS = [make_question(f"q{index}") for index in range(10)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty folder as store."""
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def s3_store(tmp_path: Path) -> Iterator[Store]:
    """An empty store on moto's S3 server."""
    import boto3

    from tests.store.conftest import BUCKET, ENVIRONMENT, moto_server

    with pytest.MonkeyPatch.context() as patch, moto_server() as endpoint_url:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=endpoint_url).create_bucket(Bucket=BUCKET)
        yield open_store(f"s3://{BUCKET}/{tmp_path.name}", endpoint_url=endpoint_url)


def begun(store: Store, recipe: Any = RECIPE, **inputs: str) -> Draft:
    """An artifact that is not finished."""
    draft = begin(store, KEY, stage="ingest", recipe=recipe, inputs={"world": "1", **inputs})
    assert isinstance(draft, Draft)
    return draft


def finished(draft: Draft, names: list[str]) -> Artifact:
    """Finish with nothing but shards."""
    return draft.finish(names, counts={}, metrics={}, placement={}, cost={})


def write_shards(draft: Draft, *, until: int = 99, per_shard: int = 3) -> list[str]:
    """Write the shards that are not durable yet, at most `until` of them; returns all names."""
    names = []
    for name, part in plan_shards(len(QUESTIONS), per_shard):
        names.append(name)
        if not draft.has(name) and until > 0:
            draft.write_records(name, QUESTIONS[part])
            until -= 1
    return names


def made(store: Store) -> Artifact:
    """A finished artifact of four shards."""
    draft = begun(store)
    return finished(draft, write_shards(draft))


def test_manifest_comes_last(store: Store) -> None:
    """Until finish returns there is no artifact, whatever shards lie there."""
    draft = begun(store)
    names = write_shards(draft)
    assert find_artifact(store, KEY) is None
    with pytest.raises(DataError, match="has no finished runs/r/questions: run the ingest stage"):
        require_artifact(store, KEY, stage="ingest")
    artifact = finished(draft, names)
    assert artifact == require_artifact(store, KEY, stage="ingest")
    assert QUESTIONS == list(artifact.records(Question))


def test_same_recipe_is_verified_and_kept(store: Store) -> None:
    """A second run gets the finished artifact back and writes nothing."""
    artifact = made(store)
    before = {key: store.read(key) for key in store.list("")}
    again = begin(store, KEY, stage="ingest", recipe=RECIPE, inputs={"world": "1"})
    assert artifact == again
    assert before == {key: store.read(key) for key in store.list("")}


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize(
    ("recipe", "inputs", "named"),
    [
        ({"sampling": {"top_p": 0.9, "seed": 0}}, {}, "sampling.top_p: 0.95 -> 0.9"),
        (RECIPE | {"new": 1}, {}, "new: nothing -> 1"),
        ({}, {}, "sampling: .* -> nothing"),
        (RECIPE, {"world": "2"}, "input world: '1' -> '2'"),
        (RECIPE, {"adapter": "a"}, "input adapter: nothing -> 'a'"),
        ({f"s{i}": i for i in range(9)}, {}, "and 6 more"),
    ],
)
def test_other_settings_are_refused(
    store: Store, is_finished: bool, recipe: Any, inputs: dict[str, str], named: str
) -> None:
    """What was begun with other settings or inputs is not mixed with; the error names them."""
    draft = begun(store)
    names = write_shards(draft, until=4 if is_finished else 2)
    if is_finished:
        finished(draft, names)
    before = {key: store.read(key) for key in store.list("")}
    with pytest.raises(SettingsError, match=named) as caught:
        begun(store, recipe, **inputs)
    assert "choose another --run-id" in str(caught.value)
    assert before == {key: store.read(key) for key in store.list("")}


def test_settings_may_change_before_the_first_shard(store: Store) -> None:
    """A stage that failed at once has made nothing that other settings could mix with."""
    begun(store)
    draft = begun(store, {"sampling": {"top_p": 0.5}})
    artifact = finished(draft, write_shards(draft))
    assert {"sampling": {"top_p": 0.5}} == artifact.manifest.recipe
    assert b'"top_p": 0.5' in store.read(f"{KEY}/{PLAN}")


def test_other_stage_is_refused(store: Store) -> None:
    """An artifact is of the stage that made it."""
    made(store)
    with pytest.raises(DataError, match="was made by stage ingest, expected train"):
        require_artifact(store, KEY, stage="train")
    with pytest.raises(SettingsError, match="stage: 'ingest' -> 'train'"):
        begin(store, KEY, stage="train", recipe=RECIPE, inputs={"world": "1"})


@settings(max_examples=20, deadline=None)
@given(num_durable=st.integers(0, 4), num_more=st.integers(0, 4))
def test_resume_ends_with_the_same_digest(
    tmp_path_factory: pytest.TempPathFactory, num_durable: int, num_more: int
) -> None:
    """Killed twice after any number of shards, a stage ends with the same bytes."""
    straight = made(open_store(str(tmp_path_factory.mktemp("straight"))))
    store = open_store(str(tmp_path_factory.mktemp("killed")))
    write_shards(begun(store), until=num_durable)
    write_shards(begun(store), until=num_more)
    draft = begun(store)
    kept = [name for name, _ in plan_shards(len(QUESTIONS), 3) if draft.has(name)]
    assert min(4, num_durable + num_more) == len(kept)
    artifact = finished(draft, write_shards(draft))
    assert straight.digest == artifact.digest
    assert straight.manifest.shards == artifact.manifest.shards


def test_finish_takes_names_from_a_generator(store: Store) -> None:
    """Names may be consumed only once."""
    draft = begun(store)
    names = write_shards(draft)
    artifact = draft.finish((name for name in names), counts={}, metrics={}, placement={}, cost={})
    assert names == [shard.name for shard in artifact.manifest.shards]


def test_finish_needs_every_shard(store: Store) -> None:
    """A shard that was never written cannot be in a manifest."""
    draft = begun(store)
    names = write_shards(draft, until=3)
    with pytest.raises(DataError, match="part-00003-of-00004"):
        finished(draft, names)
    assert find_artifact(store, KEY) is None


def test_of_two_writers_one_wins(store: Store) -> None:
    """The slower of two runs with one run_id is told so, and the winner's manifest stays."""
    first, second = begun(store), begun(store)
    artifact = finished(first, write_shards(first))
    names = write_shards(second)
    with pytest.raises(SettingsError, match="was finished by another run meanwhile"):
        second.finish(names, counts={"x": 1}, metrics={}, placement={}, cost={})
    assert artifact == find_artifact(store, KEY)


def flip(data: bytes) -> bytes:
    """One bit of the middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE: list[Callable[[bytes], bytes]] = [flip, lambda data: data[:-1], lambda _: b""]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shard_is_never_read(store: Store, damage: Callable[[bytes], bytes]) -> None:
    """A changed, cut or emptied shard is named by every way of reading it."""
    artifact = made(store)
    name = artifact.manifest.shards[2].name
    store.write(f"{KEY}/{name}", damage(store.read(f"{KEY}/{name}")))
    readers: list[Callable[[], object]] = [
        artifact.verify,
        lambda: list(artifact.records(Question)),
        lambda: artifact.read_bytes(name),
        lambda: begin(store, KEY, stage="ingest", recipe=RECIPE, inputs={"world": "1"}),
    ]
    for read in readers:
        with pytest.raises(GateError, match=f"shard {KEY}/{name} in .* delete the artifact"):
            read()


def test_damaged_shard_is_never_downloaded(store: Store, tmp_path: Path) -> None:
    """Files for other programs are checked as well."""
    artifact = made(store)
    artifact.download(tmp_path / "whole")
    assert [shard.name for shard in artifact.manifest.shards] == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    name = artifact.manifest.shards[0].name
    store.write(f"{KEY}/{name}", b"other")
    with pytest.raises(GateError, match="changed or damaged"):
        artifact.download(tmp_path / "damaged")


def test_missing_shard_is_named(store: Store) -> None:
    """A deleted shard is a data error that names it."""
    artifact = made(store)
    name = artifact.manifest.shards[1].name
    store.delete(f"{KEY}/{name}")
    with pytest.raises(DataError, match=name):
        artifact.verify()


def test_extra_files_are_not_read(store: Store) -> None:
    """Readers see what the manifest lists, whatever else lies there."""
    artifact = made(store)
    store.write(f"{KEY}/part-00009-of-00004.jsonl.gz", b"not of this artifact")
    again = begin(store, KEY, stage="ingest", recipe=RECIPE, inputs={"world": "1"})
    assert isinstance(again, Artifact)
    assert QUESTIONS == list(again.records(Question))
    with pytest.raises(DataError, match="has no shard part-00009"):
        artifact.read_bytes("part-00009-of-00004.jsonl.gz")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_durable_shard_is_found_on_resume(
    store: Store, damage: Callable[[bytes], bytes]
) -> None:
    """A shard that no manifest covers yet is a whole gzip file, or an error in one line."""
    draft = begun(store)
    names = write_shards(draft)
    store.write(f"{KEY}/{names[1]}", damage(store.read(f"{KEY}/{names[1]}")))
    draft = begun(store)
    for read in (lambda: finished(draft, names), lambda: draft.read_records(names[1], Question)):
        with pytest.raises(DataError, match=f"{names[1]}.* delete it and run its stage again"):
            read()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"stage": 1}'])
def test_damaged_plan_is_an_error(store: Store, data: bytes) -> None:
    """A plan that cannot be read says what to delete."""
    begun(store)
    store.write(f"{KEY}/{PLAN}", data)
    with pytest.raises(DataError, match=f"plan.json in .* is damaged: delete {KEY}"):
        begun(store)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schema_version": 2}'])
def test_damaged_manifest_is_an_error(store: Store, data: bytes) -> None:
    """A manifest that cannot be read is not taken for an unfinished artifact."""
    made(store)
    store.write(f"{KEY}/{MANIFEST}", data)
    with pytest.raises(DataError, match="is not a manifest of this version"):
        find_artifact(store, KEY)


def test_broken_record_names_its_line() -> None:
    """A line that is no record is named by its number and field."""
    lines = [QUESTIONS[0].model_dump_json(), '{"id": ""}']
    data = gzip.compress("\n".join(lines).encode())
    with pytest.raises(DataError, match="shard line 2: id: "):
        list(parse_records(data, Question, "shard"))


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    """No time, name or order of writing is in a shard."""
    stores = [open_store(str(tmp_path / name)) for name in "ab"]
    artifacts = [made(store) for store in stores]
    assert artifacts[0].manifest.model_copy(update={"cost": {}}) == artifacts[1].manifest
    assert artifacts[0].digest == artifacts[1].digest


def test_uploaded_file_is_a_shard(store: Store, tmp_path: Path) -> None:
    """Weights go in as files and come out checked; JSON values as well."""
    path = tmp_path / "weights"
    path.write_bytes(b"w" * 1000)
    draft = begun(store)
    draft.upload(path, "weights")
    draft.write_bytes("facts.json", json.dumps({"a": 1}).encode())
    artifact = finished(draft, ["weights", "facts.json"])
    assert path.read_bytes() == artifact.read_bytes("weights")
    assert {"a": 1} == artifact.read_json("facts.json")
    assert [] == list(artifact.records(Question))


def records_in_shards(artifact: Artifact) -> Iterator[int]:
    """Number of records by the manifest."""
    return (shard.num_records or 0 for shard in artifact.manifest.shards)


def test_counts_are_the_same_after_resume(store: Store) -> None:
    """Shards of an earlier attempt are counted as those written now."""
    write_shards(begun(store), until=2)
    draft = begun(store)
    artifact = finished(draft, write_shards(draft))
    assert [3, 3, 3, 1] == list(records_in_shards(artifact))


def test_s3_keeps_the_same_promises(s3_store: Store) -> None:
    """On S3 as on disk: manifest last, kept when equal, refused when other, damage found."""
    draft = begun(s3_store)
    write_shards(draft, until=2)
    assert find_artifact(s3_store, KEY) is None
    draft, slow = begun(s3_store), begun(s3_store)
    artifact = finished(draft, write_shards(draft))
    with pytest.raises(SettingsError, match="finished by another run"):
        finished(slow, write_shards(slow))
    assert artifact == begin(s3_store, KEY, stage="ingest", recipe=RECIPE, inputs={"world": "1"})
    with pytest.raises(SettingsError, match="seed: 0 -> 1"):
        begun(s3_store, {"sampling": {"top_p": 0.95, "seed": 1}})
    s3_store.write(f"{KEY}/{artifact.manifest.shards[0].name}", b"")
    with pytest.raises(GateError, match="changed or damaged"):
        begun(s3_store)
