"""Tests of downloads: resumed, checked, retried, each against a real server on loopback."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mmar_jobs.datasets.download import (
    STATE,
    Fetched,
    Missing,
    Patience,
    Wanted,
    bare_url,
    download,
    download_all,
)
from mmar_jobs.errors import DataError
from tests.datasets.servers import Site, serving

DATA = bytes(range(256)) * 20_000  # 5 MB
QUICK = Patience(num_retries=3, first_wait_s=0.001)


@pytest.fixture
def site() -> Iterator[Site]:
    """A server with one file."""
    with serving(Site(files={"/f": DATA})) as found:
        yield found


def fetch(
    site: Site, folder: Path, *, patience: Patience = QUICK, **values: object
) -> Fetched | Missing:
    """Download the file as `f.bin`."""
    wanted = Wanted("sub/f.bin", f"{site.base}/f", **values)  # type: ignore[arg-type]
    with httpx.Client(follow_redirects=True) as client:
        return download(wanted, folder, client, patience=patience)


def names(folder: Path) -> set[str]:
    """What of a download is left besides the file."""
    return {path.suffix for path in (folder / STATE).iterdir()}


def test_a_file_comes_whole_and_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    """Its digest is recorded; the second run asks the server nothing."""
    for _ in range(2):
        found = fetch(site, tmp_path)
        assert isinstance(found, Fetched)
        assert hashlib.sha256(DATA).hexdigest() == found.sha256
        assert len(DATA) == found.size_bytes
    assert [None] == site.ranges("/f")
    assert (tmp_path / "sub/f.bin").read_bytes() == DATA
    assert {".json"} == names(tmp_path)


def test_a_cut_connection_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    """Each attempt asks for the rest only."""
    site.cut_after["/f"] = [1_000_000, 2_000_000]
    assert isinstance(fetch(site, tmp_path), Fetched)
    first, *others = site.ranges("/f")
    assert first is None
    assert 2 == len(others)
    assert all(asked is not None and asked != "bytes=0-" for asked in others)
    assert (tmp_path / "sub/f.bin").read_bytes() == DATA


def test_a_killed_run_is_gone_on_with(site: Site, tmp_path: Path) -> None:
    """What an earlier run left is a part with another name, and the next run takes the rest."""
    site.cut_after["/f"] = [3_000_000]
    assert isinstance(fetch(site, tmp_path, patience=Patience(0)), Missing)
    assert not (tmp_path / "sub/f.bin").exists()
    assert {".part", ".json"} == names(tmp_path)
    assert isinstance(fetch(site, tmp_path), Fetched)
    assert (tmp_path / "sub/f.bin").read_bytes() == DATA
    size_bytes = int(str(site.ranges("/f")[1]).removeprefix("bytes=").rstrip("-"))
    assert 0 < size_bytes <= 3_000_000


def test_a_part_of_another_version_is_thrown_away(site: Site, tmp_path: Path) -> None:
    """A file that changed between two attempts is never put together of both."""
    site.cut_after["/f"] = [3_000_000]
    assert isinstance(fetch(site, tmp_path, patience=Patience(0)), Missing)
    site.files["/f"] = DATA[::-1]
    assert isinstance(fetch(site, tmp_path), Fetched)
    assert (tmp_path / "sub/f.bin").read_bytes() == DATA[::-1]


@pytest.mark.parametrize(("has_etags", "has_ranges"), [(False, True), (True, False)])
def test_without_ranges_or_etags_it_begins_again(
    has_etags: bool, has_ranges: bool, site: Site, tmp_path: Path
) -> None:
    """A server that cannot prove what the rest belongs to gives the whole file again."""
    site.has_etags, site.has_ranges = has_etags, has_ranges
    site.cut_after["/f"] = [3_000_000]
    assert isinstance(fetch(site, tmp_path), Fetched)
    assert (tmp_path / "sub/f.bin").read_bytes() == DATA


def test_a_known_digest_replaces_an_etag(site: Site, tmp_path: Path) -> None:
    """Where the digest is known the rest may be taken without an etag, for it is checked."""
    site.has_etags = False
    site.cut_after["/f"] = [3_000_000]
    found = fetch(site, tmp_path, sha256=hashlib.sha256(DATA).hexdigest())
    assert isinstance(found, Fetched)
    assert site.ranges("/f")[1] is not None


def test_a_part_that_is_whole_already_is_finished(site: Site, tmp_path: Path) -> None:
    """A run killed between the last byte and the name asks for nothing more."""
    site.cut_after["/f"] = [len(DATA)]
    wanted = Wanted("f.bin", f"{site.base}/f")
    with httpx.Client() as client:
        download(wanted, tmp_path, client, patience=QUICK)
        receipt = next((tmp_path / STATE).glob("*.json"))
        part = receipt.with_suffix(".part")
        (tmp_path / "f.bin").rename(part)
        etag = hashlib.sha256(DATA).hexdigest()[:16]
        note = f'{{"url": "{site.base}/f", "etag": "\\"{etag}\\""}}'
        part.with_name(f"{part.name}.json").write_text(note)
        receipt.unlink()
        assert isinstance(download(wanted, tmp_path, client, patience=QUICK), Fetched)
    assert (tmp_path / "f.bin").read_bytes() == DATA
    assert f"bytes={len(DATA)}-" == site.ranges("/f")[-1]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"md5": "0" * 32}, "MD5"),
        ({"size_bytes": len(DATA) + 1}, "bytes"),
        ({"size_bytes": 1000}, "sends more than the 1000 bytes"),
    ],
)
def test_a_wrong_file_never_gets_its_name(
    values: dict[str, object], reason: str, site: Site, tmp_path: Path
) -> None:
    """Size and digest are checked before the file has its name; a wrong part is dropped."""
    found = fetch(site, tmp_path, patience=Patience(1, 0.001), **values)
    assert isinstance(found, Missing)
    assert reason in found.reason
    assert not (tmp_path / "sub/f.bin").exists()
    assert [] == list((tmp_path / STATE).glob("*.part"))


def test_a_damaged_file_is_fetched_again(site: Site, tmp_path: Path) -> None:
    """A file that was changed since its receipt is noticed by size, or by time and digest."""
    fetch(site, tmp_path)
    path = tmp_path / "sub/f.bin"
    for damaged in (DATA[:-1], DATA[:-1] + b"x"):
        path.write_bytes(damaged)
        assert isinstance(fetch(site, tmp_path), Fetched)
        assert path.read_bytes() == DATA
    path.touch()
    fetch(site, tmp_path)
    assert 3 == len(site.ranges("/f"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(status: int, site: Site, tmp_path: Path) -> None:
    """A busy server is asked again, as often as the patience allows, then named as passing."""
    site.statuses["/f"] = [status, status]
    assert isinstance(fetch(site, tmp_path), Fetched)
    site.statuses["/g"] = [status] * 9
    with httpx.Client() as client:
        wanted = Wanted("g", f"{site.base}/g")
        found = download(wanted, tmp_path, client, patience=QUICK)
    assert isinstance(found, Missing)
    assert found.is_transient
    assert 4 == len(site.ranges("/g"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_lasting_failure_is_named_at_once(status: int, site: Site, tmp_path: Path) -> None:
    """What is not there or not allowed is asked for once."""
    site.statuses["/f"] = [status] * 9
    found = fetch(site, tmp_path)
    assert isinstance(found, Missing)
    assert not found.is_transient
    assert f"HTTP {status}" in found.reason
    assert 1 == len(site.ranges("/f"))


def test_no_server_is_a_passing_failure(tmp_path: Path) -> None:
    """A refused connection may be accepted later."""
    wanted = Wanted("f", "http://127.0.0.1:9/f")
    with httpx.Client() as client:
        found = download(wanted, tmp_path, client, patience=Patience(0))
    assert isinstance(found, Missing)
    assert found.is_transient


def test_a_token_stays_with_its_host(site: Site, tmp_path: Path) -> None:
    """The first host gets it, the one that it redirects to does not, and no file holds it."""
    with serving(Site(files={"/real": DATA})) as other:
        site.redirects["/f"] = f"{other.base}/real"
        found = fetch(site, tmp_path, headers={"Authorization": "Bearer very-secret"})
        assert isinstance(found, Fetched)
        assert [None] == [token for _, _, token in other.asked]
    assert ["Bearer very-secret"] == [token for _, _, token in site.asked]
    assert "very-secret" not in repr(Wanted("a", "b", headers={"Authorization": "very-secret"}))
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"very-secret" not in path.read_bytes()


def test_addresses_are_written_without_secrets() -> None:
    """Users, passwords, queries and fragments do not reach logs and manifests."""
    assert "https://h:1/p" == bare_url("https://user:word@h:1/p?token=secret#x")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", ".."])
def test_a_host_cannot_name_a_place_outside(name: str, site: Site, tmp_path: Path) -> None:
    """A listing is a stranger's text."""
    with httpx.Client() as client, pytest.raises(DataError, match="not safe"):
        download(Wanted(name, f"{site.base}/f"), tmp_path, client, patience=QUICK)


def test_files_come_in_parallel_and_one_failure_stops_no_other(tmp_path: Path) -> None:
    """Twenty files over eight connections; bytes add up to the bar's total."""
    files = {f"/{i}": os.urandom(1000 + i) for i in range(20)}
    with serving(Site(files=files)) as site:
        wanted = [Wanted(f"{i}", f"{site.base}/{i}") for i in range(21)]
        counted: list[int] = []
        threads: set[int] = set()

        def advance(num_bytes: int) -> None:
            counted.append(num_bytes)
            threads.add(threading.get_ident())

        fetched, missing = download_all(
            wanted, tmp_path, num_workers=8, patience=QUICK, advance=advance
        )
    assert ["20"] == [entry.what for entry in missing]
    assert [f"{i}" for i in range(20)] == [file.path for file in fetched]
    assert sum(len(data) for data in files.values()) == sum(counted)
    assert len(threads) > 1
