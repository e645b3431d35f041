"""A store in a bucket of S3 or of a server that speaks its API.

Not here: what failures mean (s3_errors.py) and the lease's protocol (s3_lease.py). Retries are
botocore's own standard mode; AWS_MAX_ATTEMPTS changes their number.
"""

import hashlib
import io
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.utils import S3_RETRYABLE_DOWNLOAD_ERRORS

from mmar_jobs.errors import DataError, SettingsError, TryAgain
from mmar_jobs.store import disk, s3_errors
from mmar_jobs.store.base import (
    LEASE_TTL_S,
    Keys,
    Measure,
    check_key,
    check_prefix,
    is_reserved,
    lease_key,
    missing,
)
from mmar_jobs.store.s3_lease import S3Lease, Target
from mmar_jobs.store.uri import Address

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CONNECT_TIMEOUT_S: Final = 10
_READ_TIMEOUT_S: Final = 60
_ABANDONED_AFTER: Final = timedelta(days=1)  # parts of an upload whose process was killed
_DIGEST: Final = "sha256"
# One put takes 5 GiB and an upload 10,000 parts: these reach 320 GB, with ten in memory at a time.
_STREAMED: Final = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=32 << 20)
_READ_BYTES: Final = 1 << 20
_NUM_READS: Final = 5  # as s3transfer's downloads
_PAUSE_S: Final = 0.1

T = TypeVar("T")


class S3Store:
    """A store below one prefix of one bucket."""

    def __init__(self, address: Address, *, endpoint_url: str | None = None) -> None:
        self._address = address
        if endpoint_url is not None:
            _check_endpoint(endpoint_url)
        with s3_errors.explained("open", address.uri, endpoint_url or ""):
            self._client, self._sent = _client(endpoint_url)
        self._leases: list[S3Lease] = []

    @property
    def num_requests(self) -> int:
        """Requests that this process sent to the endpoint, repeated ones too; S3 bills each."""
        return self._sent.num

    @property
    def uri(self) -> str:
        """The root as s3://bucket/prefix."""
        return self._address.uri

    def read(self, key: str) -> bytes:
        """See Store."""

        def whole() -> bytes:
            answer = self._client.get_object(**self._at(key))
            return answer["Body"].read()

        with self._explained("read", key), _missing_as_data(self._uri_of(key)):
            return _unbroken(whole)

    def measure(self, key: str) -> Measure:
        """See Store."""

        def measured() -> Measure:
            digest, size_bytes = hashlib.sha256(), 0
            answer = self._client.get_object(**self._at(key))
            for block in answer["Body"].iter_chunks(_READ_BYTES):
                digest.update(block)
                size_bytes += len(block)
            return Measure(digest.hexdigest(), size_bytes)

        with self._explained("read", key), _missing_as_data(self._uri_of(key)):
            return _unbroken(measured)

    def exists(self, key: str) -> bool:
        """See Store."""
        # Not HEAD: its 404 cannot tell a missing key from a missing bucket.
        at = self._at(key)
        with self._explained("read", key):
            page = self._client.list_objects_v2(Bucket=at["Bucket"], Prefix=at["Key"], MaxKeys=1)
        return any(item["Key"] == at["Key"] for item in page.get("Contents", []))

    def list(self, prefix: str) -> Keys:
        """See Store."""
        check_prefix(prefix)
        root = f"{self._address.path}/" if self._address.path else ""
        with s3_errors.explained("list", f"{self.uri}/{prefix}", self._endpoint):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._address.bucket, Prefix=f"{root}{prefix}"
            )
            names = [item["Key"] for page in pages for item in page.get("Contents", [])]
        keys = (name.removeprefix(root) for name in names)
        return sorted(key for key in keys if not is_reserved(key))

    def write(self, key: str, data: bytes) -> None:
        """See Store."""
        with self._changing("write", key):
            self._client.put_object(**self._at(key), Body=data)

    def write_new(self, key: str, data: bytes) -> bool:
        """See Store."""
        with self._changing("write", key):
            target = self._target(check_key(key))
            return target.put_if(data, etag=None, writer=uuid.uuid4().hex) is not None

    def write_parts(self, key: str, parts: Iterable[memoryview]) -> None:
        """See Store; in parallel parts when large, which S3 puts together at the end."""
        with self._changing("write", key):
            self._abort_abandoned_uploads(key)
            at = self._at(key)
            # Buffered, because the uploader takes a short read for the end.
            file = io.BufferedReader(_Parts(parts), _READ_BYTES)
            self._client.upload_fileobj(file, at["Bucket"], at["Key"], Config=_STREAMED)

    def delete(self, key: str) -> None:
        """See Store."""
        with self._changing("delete", key):
            self._client.delete_object(**self._at(key))

    def upload(self, path: Path, key: str) -> None:
        """See Store; in parallel parts when large, with the file's SHA-256 in the metadata."""
        disk.require_file(path)
        with self._changing("upload to", key), disk.explained("read", str(path)):
            self._abort_abandoned_uploads(key)
            size_bytes = path.stat().st_size
            metadata = {"Metadata": {_DIGEST: disk.digest_file(path)}}
            with path.open("rb") as file:
                at = self._at(key)
                self._client.upload_fileobj(file, at["Bucket"], at["Key"], ExtraArgs=metadata)
            if self._client.head_object(**at)["ContentLength"] != size_bytes:
                raise TryAgain(f"{path} changed while it was uploaded: run the same command again")

    def download(self, key: str, path: Path) -> None:
        """See Store; the SHA-256 is compared where `upload` recorded one, the size always."""
        if not self.exists(key):
            raise missing(self._uri_of(key))
        at = self._at(key)

        def fill(file: BinaryIO) -> None:
            with self._explained("download", key):
                head = self._client.head_object(**at)
                self._client.download_fileobj(at["Bucket"], at["Key"], file)
            file.flush()
            self._verify(key, Path(file.name), head["ContentLength"], head["Metadata"].get(_DIGEST))

        with disk.explained("write", str(path)):
            disk.remove_stale_temporaries(path.parent)
            disk.replace_file(path, fill)

    @contextmanager
    def lease(self, key: str, *, ttl_s: float = LEASE_TTL_S) -> Iterator[None]:
        """See Store; a thread renews it every third of `ttl_s`; it lapses `ttl_s` after a kill."""
        lease = S3Lease(self._target(lease_key(key)), self._uri_of(key), ttl_s)
        try:
            with self._explained("lock", key):
                lease.acquire()
            self._leases.append(lease)
            yield
            lease.check()
        finally:
            self._leases = [held for held in self._leases if held is not lease]
            lease.release()

    @property
    def _endpoint(self) -> str:
        return self._client.meta.endpoint_url

    def _name(self, key: str) -> str:
        return f"{self._address.path}/{key}" if self._address.path else key

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._address.bucket, "Key": self._name(check_key(key))}

    def _target(self, key: str) -> Target:
        return Target(self._client, self._address.bucket, self._name(key))

    def _uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def _explained(self, verb: str, key: str) -> AbstractContextManager[None]:
        return s3_errors.explained(verb, self._uri_of(check_key(key)), self._endpoint)

    @contextmanager
    def _changing(self, verb: str, key: str) -> Iterator[None]:
        for lease in self._leases:
            lease.check()
        with self._explained(verb, key):
            yield

    def _abort_abandoned_uploads(self, key: str) -> None:
        at = self._at(key)
        # A courtesy: killed uploads cost storage, but the permission to list them may be missing.
        with suppress(ClientError, BotoCoreError):
            page = self._client.list_multipart_uploads(Bucket=at["Bucket"], Prefix=at["Key"])
            for upload in page.get("Uploads", []):
                is_old = datetime.now(UTC) - upload["Initiated"] > _ABANDONED_AFTER
                if is_old and upload["Key"] == at["Key"]:
                    self._client.abort_multipart_upload(**at, UploadId=upload["UploadId"])

    def _verify(self, key: str, path: Path, size_bytes: int, digest: str | None) -> None:
        found_bytes = path.stat().st_size
        if found_bytes != size_bytes:
            raise TryAgain(
                f"{self._uri_of(key)} arrived with {found_bytes} of {size_bytes} bytes: "
                "run the same command again"
            )
        if digest is not None and disk.digest_file(path) != digest:
            raise DataError(
                f"{self._uri_of(key)} is damaged (its SHA-256 is not what its uploader recorded): "
                "delete it and run the stage that writes it again"
            )


class _Parts(io.RawIOBase):
    """Parts end to end as a file that is read once."""

    def __init__(self, parts: Iterable[memoryview]) -> None:
        self._parts = iter(parts)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, target: Any) -> int:
        """Fill `target` as far as the current part reaches; 0 at the end."""
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = part.cast("B")
        num_bytes = min(len(target), len(self._rest))
        target[:num_bytes] = self._rest[:num_bytes]
        self._rest = self._rest[num_bytes:]
        return num_bytes


@contextmanager
def _missing_as_data(address: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        is_missing = s3_errors.http_status(error) == HTTPStatus.NOT_FOUND
        if is_missing and s3_errors.error_code(error) != "NoSuchBucket":
            raise missing(address) from None
        raise


def _check_endpoint(endpoint_url: str) -> None:
    if "@" in endpoint_url:
        raise SettingsError(
            "the S3 endpoint holds credentials: give them to boto3's own chain instead"
        )
    if not endpoint_url.startswith(("http://", "https://")):
        raise SettingsError("the S3 endpoint must begin with http:// or https://: correct it")


def _unbroken(read: Callable[[], T]) -> T:
    """What `read` gives, tried again where a body breaks off: botocore retries heads only."""
    for number in range(_NUM_READS - 1):
        with suppress(*S3_RETRYABLE_DOWNLOAD_ERRORS):
            return read()
        time.sleep(_PAUSE_S * 2**number)
    return read()


class _Sent:
    """Counts requests, which transfers send from several threads."""

    def __init__(self) -> None:
        self.num = 0
        self._lock = threading.Lock()

    def count(self, **_: Any) -> None:
        """Take one more; botocore's handlers get much that is not needed here."""
        with self._lock:
            self.num += 1


@cache
def _client(endpoint_url: str | None) -> "tuple[S3Client, _Sent]":
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard"},
        # Servers other than AWS rarely have a DNS name per bucket.
        s3={"addressing_style": "path" if endpoint_url else "auto"},
    )
    try:
        client = boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)
    except ValueError as error:
        raise SettingsError("the S3 endpoint is not a URL: correct it") from error
    sent = _Sent()
    client.meta.events.register("before-send.s3", sent.count)
    return client, sent
