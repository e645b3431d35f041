"""What only S3 does: outages, refusals, lost answers, tampering and leases that lapse."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmar_jobs.errors import DataError, MmarError, SettingsError, TryAgain
from mmar_jobs.manifest import sha256
from mmar_jobs.store import open_store
from mmar_jobs.store.base import Measure

from .conftest import BUCKET, ENVIRONMENT, Place

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TTL_S = 1.2
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
ANSWERS: dict[str, tuple[int, type[MmarError]]] = {
    "SlowDown": (503, TryAgain),
    "InternalError": (500, TryAgain),
    "TooManyRequests": (429, TryAgain),
    "XMinioStorageFull": (507, TryAgain),
    "AccessDenied": (403, SettingsError),
    "SignatureDoesNotMatch": (403, SettingsError),
    "RequestTimeTooSkewed": (403, SettingsError),
    "NoSuchBucket": (404, SettingsError),
    "ExpiredToken": (400, SettingsError),
    "AuthorizationHeaderMalformed": (400, SettingsError),
    "NotImplemented": (501, SettingsError),
}
BODY = b"<Error><Code>%s</Code><Message>key very-secret-word</Message></Error>"


@contextmanager
def answering(
    status: int, code: str, *, body: bytes | None = None, promised_bytes: int = 0, num_cut: int = 99
) -> Iterator[tuple[str, list[str]]]:
    """URL of a server that gives one answer to everything, and the list of methods it was asked.

    With status 0 the bucket says what to answer: "503-slowdown". The first `num_cut` answers that
    promise more than they hold break off, later ones promise what they hold.
    """
    asked: list[str] = []
    names = {name.lower(): name for name in ANSWERS}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # else botocore waits a second for 100 Continue

        def _answer(self) -> None:
            asked.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            bucket_status, _, bucket_code = self.path.split("/")[1].partition("?")[0].partition("-")
            error = code or names.get(bucket_code, "")
            content = BODY % error.encode() if body is None else body
            self.send_response(status or int(bucket_status))
            is_cut = promised_bytes and len(asked) <= num_cut
            self.send_header("Content-Length", str(promised_bytes if is_cut else len(content)))
            self.send_header("ETag", '"1"')
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def any_answer(aws_environment: None) -> Iterator[str]:
    """URL of a server that answers for the bucket "503-slowdown" with 503 SlowDown, and so on."""
    del aws_environment
    with answering(0, "") as (url, _):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_MAX_ATTEMPTS", "1")
            open_store("s3://bucket", endpoint_url=url)  # its client is kept for this URL
        yield url


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(status, code, error) for code, (status, error) in ANSWERS.items()],
)
def test_answers_become_the_right_error(
    status: int, code: str, expected: type[MmarError], any_answer: str, tmp_path: Path
) -> None:
    """Outages may pass, refusals do not; no message repeats the server's text or a secret."""
    uri = f"s3://{status}-{code.lower()}/runs"
    store = open_store(uri, endpoint_url=any_answer)
    with pytest.raises(expected) as caught:
        store.write("a", b"1")
    with pytest.raises(expected):
        store.write_parts("a", [memoryview(b"1")])
    with pytest.raises(expected):
        store.measure("a")
    with pytest.raises(expected):
        store.list("")
    with pytest.raises(expected):
        store.download("a", tmp_path / "a")
    message = str(caught.value)
    assert type(caught.value) is expected
    assert message.startswith(f"cannot write {uri}/a: ")
    assert "\n" not in message
    assert not any(ENVIRONMENT[name] in message for name in SECRETS)


def test_an_outage_is_retried_first() -> None:
    """Requests are repeated as often as AWS_MAX_ATTEMPTS says before the job gives up."""
    with answering(503, "SlowDown") as (url, asked):
        with pytest.raises(
            TryAgain, match="503 SlowDown, also to retries: wait, then run the same"
        ):
            open_store("s3://bucket", endpoint_url=url).read("a")
        assert ["GET"] * int(ENVIRONMENT["AWS_MAX_ATTEMPTS"]) == asked


def test_a_server_that_is_gone_asks_to_try_again(tmp_path: Path) -> None:
    """Nobody listens on that port: the message names the host and port to look at."""
    with answering(200, "") as (url, _):
        pass
    store = open_store("s3://bucket", endpoint_url=url)
    with pytest.raises(TryAgain, match=f"EndpointConnectionError at {url}: check that the server"):
        store.write("a", b"1")
    (tmp_path / "a").touch()
    with pytest.raises(TryAgain), store.lease("runs/demo"):
        raise AssertionError("a lease without a server")


def test_an_answer_cut_short_is_never_taken_for_the_whole() -> None:
    """The connection breaks after 3 of 100 bytes: no half content comes back."""
    with answering(200, "", body=b"abc", promised_bytes=100) as (url, _), pytest.raises(TryAgain):
        open_store("s3://bucket", endpoint_url=url).read("a")


def test_a_body_that_breaks_off_is_read_again() -> None:
    """Two of three answers are cut: the third is the whole, for a read and for a measure."""
    for call in ("read", "measure"):
        broken = answering(200, "", body=b"abc", promised_bytes=100, num_cut=2)
        with broken as (url, asked):
            found = getattr(open_store("s3://bucket", endpoint_url=url), call)("a")
        assert found == (b"abc" if call == "read" else Measure(sha256(b"abc"), 3))
        assert ["GET"] * 3 == asked


def test_a_missing_bucket_is_a_settings_error(moto: Place, tmp_path: Path) -> None:
    """Not a missing key: the address is wrong, whichever method meets it first."""
    store = open_store("s3://no-such-bucket/x", endpoint_url=moto.endpoint_url)
    (tmp_path / "a").touch()
    for call in (
        lambda: store.read("a"),
        lambda: store.exists("a"),
        lambda: store.list(""),
        lambda: store.write("a", b""),
        lambda: store.write_new("a", b""),
        lambda: store.upload(tmp_path / "a", "a"),
        lambda: store.download("a", tmp_path / "b"),
        lambda: store.lease("a").__enter__(),
    ):
        with pytest.raises(SettingsError, match="the bucket does not exist: create it"):
            call()


def test_no_credentials_is_a_settings_error(moto: Place) -> None:
    """The message says which kinds of credentials there are, in a process that has none."""
    code = """
import sys
from mmar_jobs.errors import SettingsError
from mmar_jobs.store import open_store
try:
    open_store("s3://bucket", endpoint_url=sys.argv[1]).write("a", b"")
except SettingsError as error:
    sys.exit(str(error))
"""
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    ended = subprocess.run(
        [sys.executable, "-c", code, moto.endpoint_url or ""],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    expected = "cannot write s3://bucket/a: NoCredentialsError: set AWS credentials"
    assert ended.stderr.startswith(expected), ended.stderr
    assert 1 == ended.stderr.count("\n")


def test_a_lost_answer_does_not_turn_a_winner_into_a_loser(moto: Place) -> None:
    """The put succeeds, its answer is lost, botocore repeats it: still our own write_new won."""
    store = moto.open()
    assert store.write_new("lost-answer", b"mine")
    assert not store.write_new("lost-answer", b"other")
    assert b"mine" == store.read("lost-answer")


def test_a_damaged_object_never_reaches_its_place(
    moto: Place, moto_client: "S3Client", tmp_path: Path
) -> None:
    """Other bytes of the same length under the recorded digest: the old local file stays."""
    store = moto.open()
    (tmp_path / "a").write_bytes(b"good")
    store.upload(tmp_path / "a", "a")
    name = store.uri.removeprefix(f"s3://{BUCKET}/") + "/a"
    metadata = moto_client.head_object(Bucket=BUCKET, Key=name)["Metadata"]
    moto_client.put_object(Bucket=BUCKET, Key=name, Body=b"evil", Metadata=metadata)
    with pytest.raises(DataError, match="is damaged"):
        store.download("a", tmp_path / "a")
    assert b"good" == (tmp_path / "a").read_bytes()
    assert [tmp_path / "a"] == list(tmp_path.iterdir())


def test_parts_of_killed_uploads_are_removed_by_the_next(
    moto: Place, moto_client: "S3Client", tmp_path: Path
) -> None:
    """Unfinished uploads are all of 2010 for moto, so they are abandoned; other keys' stay."""
    store = moto.open()
    prefix = store.uri.removeprefix(f"s3://{BUCKET}/")
    for name in ("a", "ab"):
        moto_client.create_multipart_upload(Bucket=BUCKET, Key=f"{prefix}/{name}")
    (tmp_path / "a").write_bytes(b"1")
    store.upload(tmp_path / "a", "a")
    page = moto_client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
    assert [f"{prefix}/ab"] == [upload["Key"] for upload in page["Uploads"]]


def test_a_lease_outlives_its_ttl_while_its_holder_lives(moto: Place) -> None:
    """It is renewed in the background, for as long as the block runs."""
    uri = moto.fresh_uri()
    with moto.open(uri).lease("runs/demo", ttl_s=TTL_S):
        until = time.monotonic() + 2.5 * TTL_S
        while time.monotonic() < until:
            with pytest.raises(TryAgain), moto.open(uri).lease("runs/demo", ttl_s=TTL_S):
                raise AssertionError("both hold the lease")
            time.sleep(0.1)


def test_a_lost_lease_stops_the_next_change(moto: Place, moto_client: "S3Client") -> None:
    """Another run took over: the first one must not write a byte more, and its exit says so too."""
    store = moto.open()
    name = store.uri.removeprefix(f"s3://{BUCKET}/") + "/runs/.mmar-lease-demo"
    lease = store.lease("runs/demo", ttl_s=TTL_S)
    lease.__enter__()
    moto_client.put_object(Bucket=BUCKET, Key=name, Body=b"{}")
    time.sleep(0.6 * TTL_S)
    for call in (
        lambda: store.write("a", b""),
        lambda: store.write_new("a", b""),
        lambda: store.delete("a"),
    ):
        with pytest.raises(TryAgain, match=r"lost the lease on s3://.*run the same command"):
            call()
    with pytest.raises(TryAgain, match="lost the lease"):
        lease.__exit__(None, None, None)
    assert [] == store.list("")
    assert b"{}" == moto_client.get_object(Bucket=BUCKET, Key=name)["Body"].read()


def test_of_many_that_wait_for_a_lapsed_lease_one_gets_it(
    moto: Place, moto_client: "S3Client"
) -> None:
    """Taking over is a conditional put, so two that see the same dead lease cannot both win."""
    uri = moto.fresh_uri()
    name = uri.removeprefix(f"s3://{BUCKET}/") + "/runs/.mmar-lease-demo"
    moto_client.put_object(Bucket=BUCKET, Key=name, Body=b'{"ttl_s": 0.5, "host": "gone"}')
    time.sleep(2.1)
    barrier, done = threading.Barrier(4), threading.Event()
    won: list[int] = []

    def compete(number: int) -> None:
        barrier.wait()
        try:
            with moto.open(uri).lease("runs/demo"):
                won.append(number)
                done.wait(5)
        except TryAgain:
            lost.release()

    lost = threading.Semaphore(0)
    threads = [threading.Thread(target=compete, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert all(lost.acquire(timeout=5) for _ in range(3))
    done.set()
    for thread in threads:
        thread.join()
    assert 1 == len(won)


def test_a_server_without_conditional_writes_cannot_hold_a_lease() -> None:
    """Old S3 servers ignore If-None-Match without a word: better no run than two at once."""
    with answering(200, "", body=b"") as (url, _):
        store = open_store("s3://bucket", endpoint_url=url)
        with pytest.raises(SettingsError, match="ignores If-None-Match"), store.lease("runs/demo"):
            raise AssertionError("a lease that excludes nobody")
