"""Mutual exclusion by one small S3 object that its holder keeps renewing with conditional puts.

Not here: which keys are leased. Ages are taken between two clocks of the server (Date and
Last-Modified), and the holder judges its own by a monotonic clock, so no clocks need to agree.
"""

import math
import os
import platform
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from mmar_jobs.errors import SettingsError, TryAgain
from mmar_jobs.store.base import Owner, lease_busy, parse_fields
from mmar_jobs.store.s3_errors import error_code, http_status

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

RENEWALS_PER_TTL: Final = 3
_CLOCK_TICK_S: Final = 1.0  # both of the server's times are cut to whole seconds
_CONFLICT_PAUSE_S: Final = 0.2
_MAX_CONFLICTS: Final = 25
_GONE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.PRECONDITION_FAILED})


@dataclass(frozen=True, slots=True)
class Target:
    """One object of one bucket."""

    client: "S3Client"
    bucket: str
    key: str

    def put_if(self, body: bytes, *, etag: str | None, writer: str) -> str | None:
        """Put only over the version `etag`, or over nothing when None; the new ETag, or None.

        `writer` is unique to this put: after a lost answer botocore repeats the request, and the
        repetition is refused because of the first. Then the object's writer tells that we won.
        """
        condition: dict[str, Any] = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        for _ in range(_MAX_CONFLICTS):
            try:
                answer = self.client.put_object(
                    Bucket=self.bucket,
                    Key=self.key,
                    Body=body,
                    Metadata={"writer": writer},
                    **condition,
                )
            except ClientError as error:
                if http_status(error) in _GONE and error_code(error) != "NoSuchBucket":
                    return self._etag_by(writer)
                if http_status(error) != HTTPStatus.CONFLICT:
                    raise
                # 409: S3 saw another conditional put in flight and asks to repeat this one.
                time.sleep(_CONFLICT_PAUSE_S)
            else:
                return answer["ETag"]
        raise TryAgain(f"s3://{self.bucket}/{self.key} is being written by others: run again")

    def _etag_by(self, writer: str) -> str | None:
        try:
            head = self.client.head_object(Bucket=self.bucket, Key=self.key)
        except ClientError as error:
            if http_status(error) == HTTPStatus.NOT_FOUND:
                return None
            raise
        return head["ETag"] if head["Metadata"].get("writer") == writer else None


@dataclass
class S3Lease:
    """One lease: acquire, then check before every change, then release."""

    target: Target
    address: str
    ttl_s: float
    _etag: str = ""
    _renewed: float = -math.inf
    _is_lost: bool = False
    _stop: threading.Event = field(default_factory=threading.Event)
    _since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._keep, name="s3-lease", daemon=True)

    def acquire(self) -> None:
        """Take the lease; TryAgain names its holder, SettingsError a server that cannot do it."""
        # The third try is for a lease that was released between the first two.
        etag = self._put(None) or self._put_over_expired() or self._put(None)
        if etag is None:
            raise self._busy({})
        self._etag = etag
        if self.target.put_if(b"", etag=None, writer=uuid.uuid4().hex):
            raise SettingsError(
                f"{self.address}: this S3 server ignores If-None-Match, so two runs could mix: "
                "use a server with conditional writes"
            )
        self._thread.start()

    def check(self) -> None:
        """Raise TryAgain unless the lease is still ours for sure."""
        if self._is_lost or time.monotonic() - self._renewed > self.ttl_s:
            raise TryAgain(
                f"lost the lease on {self.address} (not renewed for {self.ttl_s:g} s, or taken): "
                "run the same command again, finished work is kept"
            )

    def release(self) -> None:
        """Free the lease if it is still ours; a failure only means that it lapses by itself."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self.ttl_s)
        with suppress(TryAgain, ClientError, BotoCoreError):
            self.check()
            self.target.client.delete_object(
                Bucket=self.target.bucket, Key=self.target.key, IfMatch=self._etag
            )

    def _put(self, etag: str | None) -> str | None:
        asked = time.monotonic()
        body = Owner(platform.node(), os.getpid(), self._since).render(
            ttl_s=self.ttl_s, asked=asked
        )
        new_etag = self.target.put_if(body, etag=etag, writer=uuid.uuid4().hex)
        if new_etag:
            self._renewed = asked
        return new_etag

    def _put_over_expired(self) -> str | None:
        try:
            answer = self.target.client.get_object(Bucket=self.target.bucket, Key=self.target.key)
        except ClientError as error:
            if http_status(error) != HTTPStatus.NOT_FOUND:
                raise
            return None
        fields = parse_fields(answer["Body"].read())
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        age_s = (now - answer["LastModified"]).total_seconds() - _CLOCK_TICK_S
        etag = self._put(answer["ETag"]) if age_s > float(fields.get("ttl_s", self.ttl_s)) else None
        if etag is None:
            raise self._busy(fields)
        return etag

    def _busy(self, fields: dict[str, Any]) -> TryAgain:
        ttl_s = float(fields.get("ttl_s", self.ttl_s))
        advice = f" (if it was killed, the lease lapses within {ttl_s:g} s)"
        return lease_busy(self.address, Owner.parse(fields), advice)

    def _keep(self) -> None:
        while not self._stop.wait(self.ttl_s / RENEWALS_PER_TTL):
            try:
                etag = self._put(self._etag)
            except (ClientError, BotoCoreError, TryAgain):
                continue  # an outage: check() judges by the clock, the next turn may succeed
            if etag is None:
                self._is_lost = True
                return
            self._etag = etag
