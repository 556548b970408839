"""Clients of S3 and Google Cloud Storage, set up from the environment; what they say, and when to ask again.

Credentials are read by the clients themselves (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
an AWS profile, the role of a node or pod; for Google its application default) and pass through none of our
code.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar

import pyarrow as pa
from pyarrow.fs import (
    AwsStandardS3RetryStrategy,
    FileSystem,
    GcsFileSystem,
    S3FileSystem,
    resolve_s3_region,
)

from avtok.media import ClipError

TRIES = 3  # of a call, which itself makes up to SDK_TRIES requests
SDK_TRIES = 2
BACKOFF_S = 0.25
CONNECT_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 10.0
GCS_PATIENCE_S = 30.0

_TRANSIENT = re.compile(
    r"HTTP status (429|5\d\d)|NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|SERVICE_UNAVAILABLE"
    r"|REQUEST_TIMEOUT|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL)",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile(
    r"ACCESS_DENIED|HTTP status 40[13]|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH"
    r"|MISSING_AUTHENTICATION|EXPIRED_TOKEN|UNRECOGNIZED_CLIENT|InvalidAccessKeyId|PERMISSION_DENIED"
    r"|UNAUTHENTICATED",
    re.IGNORECASE,
)
T = TypeVar("T")


class StoreError(ClipError):
    """Bytes that cannot be had; the message is one line that begins with their address."""


def with_retries(uri: str, call: Callable[[], T], *, is_remote: bool) -> T:
    """StoreError in one line for what the store says, after TRIES where asking again may help."""
    for tries in range(1, TRIES + 1):
        try:
            return call()
        except (OSError, pa.ArrowException) as error:
            if tries == TRIES or not (is_remote and _TRANSIENT.search(str(error))):
                raise StoreError(f"{uri}: {in_words(error, is_remote=is_remote)}") from None
            time.sleep(BACKOFF_S * 2**tries * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def in_words(error: Exception, *, is_remote: bool) -> str:
    """What went wrong and what to do, without the numbers of requests."""
    said = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) or "NO_SUCH_KEY" in said:
        return "no such object" if is_remote else "no such file or folder"
    if not is_remote:
        return getattr(error, "strerror", None) or said
    if "NO_SUCH_BUCKET" in said:
        return "no such bucket"
    if _FORBIDDEN.search(said):
        return "no permission; check the credentials in the environment and the policy of the bucket"
    if "HTTP status 301" in said or "PERMANENT_REDIRECT" in said:
        return "the bucket lies in another region; set AWS_REGION"
    if "NETWORK_CONNECTION" in said:
        detail = said.rpartition("Details: ")[2]
        return (
            f"{endpoint() or 'the store'} does not answer ({detail:.120}); check the address and the network"
        )
    return f"the store failed: {said.partition(' (Request ID')[0]:.240}"


def endpoint() -> str:
    """Of an S3 server other than Amazon's; empty: Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def s3_store(bucket: str) -> FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    if not region:
        region = "us-east-1" if endpoint() else _region_of(bucket)
    return _s3_store(endpoint(), region, os.getpid())


def gcs_store() -> FileSystem:
    return _gcs_store(os.environ.get("STORAGE_EMULATOR_HOST", ""), os.getpid())


@lru_cache(maxsize=64)
def _region_of(bucket: str) -> str:
    try:
        return resolve_s3_region(bucket)
    except (OSError, pa.ArrowException):
        return "us-east-1"  # and the request itself says what is wrong


@lru_cache(maxsize=16)
def _s3_store(endpoint: str, region: str, process: int) -> FileSystem:
    """process: the connections of a forked child are its own."""
    return S3FileSystem(
        endpoint_override=endpoint or None,
        region=region,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=IDLE_TIMEOUT_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=SDK_TRIES),
    )


@lru_cache(maxsize=4)
def _gcs_store(emulator: str, process: int) -> FileSystem:
    patience = timedelta(seconds=GCS_PATIENCE_S)
    if not emulator:
        return GcsFileSystem(retry_time_limit=patience)
    scheme, _, host = emulator.rpartition("://")
    return GcsFileSystem(
        anonymous=True, scheme=scheme or "http", endpoint_override=host.rstrip("/"), retry_time_limit=patience
    )
