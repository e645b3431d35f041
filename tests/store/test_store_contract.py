"""What every store promises, checked on every kind of place by the same tests."""

import hashlib
import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mmar_jobs.errors import DataError, GateError, TryAgain
from mmar_jobs.store import Store

from .conftest import Place

MULTIPART_BYTES = 9 << 20  # boto3 sends files over 8 MiB in parts
LEASE_TTL_S = 0.9
HOLD = (
    "with store.lease('runs/demo', ttl_s=0.9):\n    print('held', flush=True)\n    time.sleep(60)"
)
# A folder of one key must not be the name of another: no folder on a disk allows that.
NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters="/\\."),
    min_size=1,
    max_size=12,
)
KEYS = st.builds(
    lambda folders, name: "/".join([*(f"{folder}.d" for folder in folders), f"{name}.f"]),
    st.lists(NAMES, max_size=2),
    NAMES,
)
FEW_KEYS = st.sampled_from(["a.f", "b.f", "b.d/a.f", "b.d/ab.f", "b.d/é 1.f", "c.d/d.d/e.f"])
PREFIXES = st.sampled_from(["", "a", "b.d", "b.d/", "b.d/a", "c.d/", "c.d/d.d/", "zz/"])


def test_a_missing_key_is_a_data_error_that_names_key_and_store(store: Store) -> None:
    """The message alone must be enough to find out what is missing where."""
    with pytest.raises(DataError, match=r"part-1\.gz does not exist") as caught:
        store.read("runs/demo/part-1.gz")
    assert store.uri.removeprefix("file://") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_delete_is_idempotent(store: Store) -> None:
    """A killed and repeated cleanup must not fail, also where a parent is no folder."""
    store.write("a", b"1")
    store.delete("a")
    store.delete("a")
    store.delete("b/c")
    assert not store.exists("a")
    assert [] == store.list("")


def test_a_folder_is_not_a_key(store: Store) -> None:
    """Neither read nor exists takes a folder for bytes."""
    store.write("runs/demo/a", b"1")
    assert not store.exists("runs/demo")
    assert [] == store.list("runs/demo/a/")
    with pytest.raises(DataError, match="runs/demo"):
        store.read("runs/demo")


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "/a", "a/", "a//b", ".", "./a", "a/./b", "..", "../a", "a/..", "a\\b", "a\nb"),
        *("a\0", "\ud800", ".mmar-x", "a/.mmar-tmp-1", "x" * 256, "x/" * 500 + "x"),
    ],
)
def test_a_bad_key_is_refused_by_every_method(store: Store, key: str, tmp_path: Path) -> None:
    """No key leaves its root, breaks a message's line or touches the store's own files."""
    (tmp_path / "x").touch()
    calls: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.exists(key),
        lambda: store.write(key, b""),
        lambda: store.write_new(key, b""),
        lambda: store.write_parts(key, []),
        lambda: store.measure(key),
        lambda: store.delete(key),
        lambda: store.upload(tmp_path / "x", key),
        lambda: store.download(key, tmp_path / "y"),
        lambda: store.lease(key).__enter__(),
    ]
    for call in calls:
        with pytest.raises(DataError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_list_is_complete_beyond_one_page(moto: Place) -> None:
    """S3 answers in pages, 7 keys each on this server; what follows the first must not be lost."""
    store = moto.open()
    keys = [f"shards/{number:05}" for number in range(15)]
    for key in keys:
        store.write(key, b"")
    assert keys == store.list("shards/")


def test_files_travel_unharmed_through_upload_and_download(store: Store, tmp_path: Path) -> None:
    """A multipart file comes back bit by bit, over an old file and into a new folder."""
    data = hashlib.shake_128(b"adapter").digest(MULTIPART_BYTES)
    (tmp_path / "adapter").write_bytes(data)
    store.upload(tmp_path / "adapter", "models/adapter")
    store.upload(tmp_path / "adapter", "models/adapter")
    target = tmp_path / "new" / "folder" / "copy"
    store.download("models/adapter", target)
    store.download("models/adapter", target)
    assert data == target.read_bytes()
    assert [target] == list(target.parent.iterdir())
    assert data == store.read("models/adapter")


@pytest.mark.parametrize("sizes", [(), (0,), (1, 0, 5), (9 << 20, 1, 60 << 20, 3)])
def test_parts_arrive_end_to_end(store: Store, sizes: tuple[int, ...]) -> None:
    """Parts of any sizes, more than one upload takes at once, come back as one file, measured."""
    source = hashlib.shake_128(b"state").digest(sum(sizes))
    cuts = [0, *itertools.accumulate(sizes)]
    parts = [source[start:end] for start, end in itertools.pairwise(cuts)]
    store.write("runs/state", b"before")
    store.write_parts("runs/state", (memoryview(part) for part in parts))
    found = store.measure("runs/state")
    assert (hashlib.sha256(source).hexdigest(), len(source)) == found
    assert source == store.read("runs/state")


def test_parts_that_fail_leave_what_was_there(store: Store) -> None:
    """An error half way through the parts comes out as it is, and the old bytes stay."""

    def parts() -> Iterator[memoryview]:
        yield memoryview(bytes(MULTIPART_BYTES))
        raise GateError("the parts cannot be made")

    store.write("runs/state", b"before")
    with pytest.raises(GateError, match="cannot be made"):
        store.write_parts("runs/state", parts())
    assert b"before" == store.read("runs/state")
    assert ["runs/state"] == store.list("")


def test_missing_files_are_data_errors(store: Store, tmp_path: Path) -> None:
    """Neither direction invents a file, and a failed download leaves the old one alone."""
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(DataError, match="nothing can be uploaded"):
        store.upload(tmp_path / "absent", "a")
    with pytest.raises(DataError, match="does not exist"):
        store.download("a", tmp_path / "old")
    with pytest.raises(DataError, match="does not exist"):
        store.measure("a")
    assert b"old" == (tmp_path / "old").read_bytes()


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(contents=st.dictionaries(KEYS, st.binary(max_size=64), min_size=1, max_size=4))
def test_what_was_written_is_read_and_listed(place: Place, contents: dict[str, bytes]) -> None:
    """Law: write then read is the identity, and list is exactly the set of written keys."""
    store = place.open()
    for key, data in contents.items():
        store.write(key, data)
    assert sorted(contents) == store.list("")
    assert contents == {key: store.read(key) for key in contents}


class StoreMachine(RuleBasedStateMachine):
    """Any order of calls leaves a store equal to a dict."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.model: dict[str, bytes] = {}

    @initialize()
    def start(self) -> None:
        """Begin with nothing."""
        assert [] == self.store.list("")

    @rule(key=FEW_KEYS, data=st.binary(max_size=9))
    def write(self, key: str, data: bytes) -> None:
        """Write replaces."""
        self.store.write(key, data)
        self.model[key] = data

    @rule(key=FEW_KEYS, data=st.binary(max_size=9))
    def write_new(self, key: str, data: bytes) -> None:
        """write_new never replaces."""
        assert (key not in self.model) == self.store.write_new(key, data)
        self.model.setdefault(key, data)

    @rule(key=FEW_KEYS)
    def delete(self, key: str) -> None:
        """Delete forgets."""
        self.store.delete(key)
        self.model.pop(key, None)

    @rule(key=FEW_KEYS, data=st.binary(max_size=9))
    def upload(self, key: str, data: bytes) -> None:
        """Upload is write from a file."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "x"
            path.write_bytes(data)
            self.store.upload(path, key)
        self.model[key] = data

    @rule(key=FEW_KEYS)
    def read(self, key: str) -> None:
        """Read, exists and download agree."""
        assert (key in self.model) == self.store.exists(key)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "x"
            if key in self.model:
                assert self.model[key] == self.store.read(key)
                self.store.download(key, path)
                assert self.model[key] == path.read_bytes()
                return
            with pytest.raises(DataError):
                self.store.read(key)
            with pytest.raises(DataError):
                self.store.download(key, path)

    @rule(prefix=PREFIXES)
    def list(self, prefix: str) -> None:
        """A prefix is a string prefix."""
        expected = sorted(key for key in self.model if key.startswith(prefix))
        assert expected == self.store.list(prefix)

    @invariant()
    def same_keys(self) -> None:
        """Nothing appears or vanishes on the side."""
        assert sorted(self.model) == self.store.list("")


def test_a_store_behaves_like_a_dict(place: Place) -> None:
    """Law: whatever is called in whatever order, the store equals a plain dict."""

    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__(place.open())

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=6, stateful_step_count=12, deadline=None),
    )


def test_of_many_threads_one_write_new_wins(store: Store) -> None:
    """The content is the winner's, and every other one was told that it lost."""
    barrier = threading.Barrier(8)

    def compete(number: int) -> bool:
        barrier.wait()
        return store.write_new("manifest.json", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(compete, range(8)))
    assert 1 == sum(won)
    assert str(won.index(True)).encode() == store.read("manifest.json")
    assert ["manifest.json"] == store.list("")


def test_of_many_processes_one_write_new_wins(place: Place) -> None:
    """The same across processes, which wait for one another before they try."""
    code = """
print("ready", flush=True)
while not store.exists("go"): time.sleep(0.01)
print(store.write_new("manifest.json", sys.argv[0].encode()), flush=True)
"""
    uri = place.fresh_uri()
    with place.python(code, uri) as first, place.python(code, uri) as second:
        racers = (first, second)
        assert ["ready\n"] * 2 == [racer.stdout.readline() for racer in racers if racer.stdout]
        place.open(uri).write("go", b"")
        lines = [racer.stdout.readline() for racer in racers if racer.stdout]
    assert ["False\n", "True\n"] == sorted(lines)


def test_a_writer_killed_by_signal_9_never_leaves_half(place: Place) -> None:
    """After each kill a reader meets one whole version, and list shows no trace of the writer."""
    code = """
print("ready", flush=True)
while True:
    for letter in (b"a", b"b"):
        store.write("data", letter * (2 << 20))
"""
    uri = place.fresh_uri()
    store = place.open(uri)
    store.write("data", b"a" * (2 << 20))
    for pause_s in (0.03, 0.08):
        with place.python(code, uri) as writer:
            assert writer.stdout
            assert "ready\n" == writer.stdout.readline()
            time.sleep(pause_s)
        data = store.read("data")
        assert 2 << 20 == len(data)
        assert 1 == len(set(data))
        assert ["data"] == store.list("")


def test_a_lease_excludes_others_and_ends_with_its_block(place: Place) -> None:
    """The second holder learns who has the run, since when, and what to do; then gets its turn."""
    uri = place.fresh_uri()
    first, second = place.open(uri), place.open(uri)
    with first.lease("runs/demo"):
        with second.lease("runs/other"):
            pass
        first.write("runs/demo/a", b"1")
        with pytest.raises(TryAgain) as caught, second.lease("runs/demo"):
            raise AssertionError("both hold the lease")
        assert ["runs/demo/a"] == second.list("")
    message = str(caught.value)
    assert "runs/demo is in use by pid " in message
    assert " since 20" in message
    assert "--run-id" in message
    assert "\n" not in message
    with second.lease("runs/demo"):
        pass


def test_a_lease_ends_when_its_block_raises(store: Store) -> None:
    """A failed stage does not lock its run."""
    with pytest.raises(ZeroDivisionError), store.lease("runs/demo"):
        raise ZeroDivisionError
    with store.lease("runs/demo"):
        pass


def test_a_killed_holder_frees_its_lease(place: Place) -> None:
    """Signal 9 to the holder: on a disk the next one gets in at once, on S3 when it lapsed."""
    uri = place.fresh_uri()
    store = place.open(uri)
    with place.python(HOLD, uri) as holder:
        assert holder.stdout
        assert "held\n" == holder.stdout.readline()
        with pytest.raises(TryAgain, match=f"by pid {holder.pid} on "), store.lease("runs/demo"):
            raise AssertionError("both hold the lease")
    killed = time.monotonic()
    while True:
        try:
            with store.lease("runs/demo", ttl_s=LEASE_TTL_S):
                break
        except TryAgain:
            assert uri.startswith("s3://"), "the kernel frees a file lease at once"
            assert time.monotonic() - killed < LEASE_TTL_S + 3
            time.sleep(0.1)


def test_stores_under_one_root_do_not_see_each_other(place: Place) -> None:
    """The prefix of a store is a folder, not a string: runs-2 is not in runs."""
    base = f"{place.base}/{uuid.uuid4().hex}"
    one, two = place.open(f"{base}/runs"), place.open(f"{base}/runs-2/")
    two.write("a", b"2")
    assert [] == one.list("")
    assert f"{base}/runs-2" == two.uri
