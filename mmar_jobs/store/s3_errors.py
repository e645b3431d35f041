"""What failures of S3 mean to the user: a setting to change, or a reason to try again.

Not here: missing keys, which s3.py tells apart itself. Messages hold error codes and hosts, never
the server's text or a URL, so no credential can slip through.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from boto3.exceptions import Boto3Error
from botocore import exceptions as botocore_exceptions
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    InvalidProxiesConfigError,
    ProxyConnectionError,
    SSLError,
)
from s3transfer.exceptions import RetriesExceededError

from mmar_jobs.errors import MmarError, SettingsError, TryAgain

_PASSING: Final = frozenset(
    {"RequestTimeout", "Throttling", "ThrottlingException", "RequestThrottled"}
)
_REFUSED_STATUS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_OUTAGES: Final = (
    botocore_exceptions.ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    RetriesExceededError,
)
_AGAIN: Final = "run the same command again, finished work is kept"


@contextmanager
def explained(verb: str, address: str, endpoint: str) -> Iterator[None]:
    """Turn botocore's exceptions of the block into SettingsError, or TryAgain where it may pass."""
    try:
        yield
    except ClientError as error:
        raise _explain_answer(error, f"cannot {verb} {address}") from error
    except (BotoCoreError, Boto3Error, RetriesExceededError) as error:
        raise _explain_silence(error, f"cannot {verb} {address}", endpoint) from error


def error_code(error: ClientError) -> str:
    """S3's name of the error, or the HTTP status where the answer had no body."""
    return error.response.get("Error", {}).get("Code", "unknown")


def http_status(error: ClientError) -> int:
    """HTTP status of the answer, 0 when there was none."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def host_of(endpoint: str) -> str:
    """Scheme, host and port of `endpoint`, without whatever else a URL may hold."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _explain_answer(error: ClientError, what: str) -> MmarError:
    code, status = error_code(error), http_status(error)
    if code == "NoSuchBucket":
        return SettingsError(f"{what}: the bucket does not exist: create it or correct the address")
    if status == HTTPStatus.INSUFFICIENT_STORAGE:
        return TryAgain(f"{what}: disk full on the server: free space, then {_AGAIN}")
    passing = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    if (passing and status != HTTPStatus.NOT_IMPLEMENTED) or code in _PASSING:
        return TryAgain(f"{what}: S3 answers {status} {code}, also to retries: wait, then {_AGAIN}")
    if code == "RequestTimeTooSkewed":
        return SettingsError(f"{what}: S3 finds this machine's clock wrong: set it ({code})")
    if status in _REFUSED_STATUS:
        return SettingsError(
            f"{what}: access refused ({code}): check the credentials and the bucket's policy"
        )
    return SettingsError(
        f"{what}: S3 answers {status} {code}: check bucket, region, endpoint and server"
    )


def _explain_silence(error: Exception, what: str, endpoint: str) -> MmarError:
    name = type(error).__name__
    if isinstance(error, SSLError | InvalidProxiesConfigError | ProxyConnectionError):
        return SettingsError(f"{what}: {name} at {host_of(endpoint)}: check certificate and proxy")
    if isinstance(error, _OUTAGES):
        return TryAgain(
            f"{what}: {name} at {host_of(endpoint)}: check that the server is there, then {_AGAIN}"
        )
    return SettingsError(
        f"{what}: {name}: set AWS credentials (environment, profile, role) and check the endpoint"
    )
