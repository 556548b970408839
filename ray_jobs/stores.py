"""Bytes by address: local paths, s3://, gs://, members of tars. All that is remote goes through pyarrow.fs.

Addresses: a path, file://PATH, s3://BUCKET/KEY, gs://BUCKET/KEY, and TAR#OFFSET+SIZE/NAME for a member of a
tar at any of these. Keys are written as they are, not percent-encoded.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Self, TypeVar
from urllib.parse import unquote

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from ray_jobs.spool import Spool, SpoolError, default_folder
from ray_jobs.store_clients import StoreError, gcs_store, s3_store, with_retries

__all__ = [
    "Member",
    "StoreError",
    "content_key",
    "exists",
    "list_files",
    "local_copy",
    "member_of",
    "node_spool",
]

SCHEMES = ("s3", "gs")
IDENTITY_S = 30.0  # for which what is known of an object is believed
KNOWN_OBJECTS = 4096
BLOCK_BYTES = 8 << 20
NAME_CHARACTERS = 80  # of an object's own name in the name of its copy

_MEMBER = re.compile(
    r"(?P<tar>.+\.tar)#(?P<offset>\d+)\+(?P<size>\d+)/(?P<name>.+)", re.DOTALL | re.IGNORECASE
)
T = TypeVar("T")


@dataclass(frozen=True)
class Member:
    """A member of a tar: where its bytes lie."""

    tar: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.tar}#{self.offset}+{self.size}/{self.name}"


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def member_of(uri: str) -> Member | None:
    """What TAR#OFFSET+SIZE/NAME means; None for any other address."""
    found = _MEMBER.fullmatch(uri)
    return Member(found["tar"], int(found["offset"]), int(found["size"]), found["name"]) if found else None


def store_of(uri: str) -> tuple[FileSystem, str]:
    """The file system that holds `uri`, and the path in it. StoreError for an address of another kind."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalFileSystem(), str(Path(uri).absolute())
    if scheme == "file":
        return LocalFileSystem(), unquote(rest)
    if scheme not in SCHEMES:
        raise StoreError(f"{uri}: {scheme}:// is not read; give a path, s3:// or gs://")
    bucket = rest.partition("/")[0]
    if "@" in bucket:
        raise StoreError(
            f"{scheme}://...{rest[rest.index('@') :]}: credentials do not belong in an address; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not bucket:
        raise StoreError(f"{uri}: names no bucket; give {scheme}://BUCKET/KEY")
    return (s3_store(bucket) if scheme == "s3" else gcs_store()), rest.rstrip("/")


def exists(uri: str) -> bool:
    """A file, an object, or a folder of them."""
    member = member_of(uri)
    return _info(member.tar if member else uri).type != FileType.NotFound


def is_folder(uri: str) -> bool:
    return _info(uri).type == FileType.Directory


def list_files(uri: str) -> list[str]:
    """Every file below a folder, sorted, as addresses like the one given; hidden ones too."""
    store, path = store_of(uri)
    found = _ask(uri, lambda: store.get_file_info(FileSelector(path, recursive=True)))
    prefix = f"{uri.partition('://')[0]}://" if is_remote(uri) else ""
    return sorted(prefix + info.path for info in found if info.type == FileType.File)


def read_bytes(uri: str) -> bytes:
    return b"".join(_blocks(uri, size_of(uri)))


def open_input(uri: str) -> pa.NativeFile:
    """For reading at any offset; not for a member of a tar. Errors while reading are pyarrow's own."""
    store, path = store_of(uri)
    return _ask(uri, lambda: store.open_input_file(path))


class RangeReader:
    """Reads of a file at any offset, each tried again where that may help."""

    def __init__(self, uri: str) -> None:
        self.uri, self._file = uri, open_input(uri)
        self.num_bytes = self._file.size()

    def read_at(self, offset: int, num_bytes: int) -> bytes:
        """Fewer bytes at the end of the file."""

        def read() -> bytes:
            if self._file.closed:  # as Google's client leaves it when a read fails
                self._file = open_input(self.uri)
            return self._file.read_at(num_bytes, offset)

        return _ask(self.uri, read)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def size_of(uri: str) -> int:
    member = member_of(uri)
    return member.size if member else _file_info(uri).size


def content_key(uri: str) -> str:
    """Size and ETag or change time: another one where the bytes are others, without reading them."""
    if (member := member_of(uri)) is not None:
        return f"{content_key(member.tar)}#{member.offset}+{member.size}"
    if not uri.startswith("s3://"):
        info = _file_info(uri)
        return f"{info.size}-{info.mtime_ns}"
    store, path = store_of(uri)

    def identity() -> str:
        with store.open_input_file(path) as file:
            return f"{file.size()}-{(file.metadata() or {}).get('ETag', b'').decode()}"

    return _ask(uri, identity)


def node_spool(spool_gb: float = 8.0) -> Spool:
    """The spool of this node, which all processes of one user share."""
    return _spool(default_folder(), int(spool_gb * 1e9))


def local_copy(uri: str, *, spool: Spool | None = None) -> Path:
    """The bytes of `uri` as a local file: itself where it is one, else a copy in the spool of the node.

    A copy stays at least for a minute, and while it is among the last that this process asked for
    (`ray_jobs.spool.HELD`). Its name ends as the object's does. An object that changed is fetched anew, at
    the latest when IDENTITY_S have passed. StoreError, one line, when the bytes cannot be had.
    """
    member = member_of(uri)
    if member is None and not is_remote(uri):
        return Path(store_of(uri)[1]) if uri.startswith("file://") else Path(uri)
    key = _known_key(uri)
    num_bytes = member.size if member else int(key.partition("-")[0])
    digest = hashlib.sha256(f"{uri}\n{key}".encode()).hexdigest()[:32]
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", uri.rpartition("/")[2])[-NAME_CHARACTERS:]

    def write(file: BinaryIO) -> None:
        for block in _blocks(uri, num_bytes):
            file.write(block)
        if content_key(uri) != key:
            raise StoreError(f"{uri}: changed while it was read; index it again")

    try:
        return (spool or node_spool()).get(f"{digest}-{plain}", num_bytes, write)
    except (SpoolError, OSError) as error:
        raise StoreError(f"{uri}: {error}") from None
    except StoreError:
        _keys.pop(member.tar if member else uri, None)
        raise


_keys: dict[str, tuple[float, str]] = {}  # uri -> (known until, key)


def _known_key(uri: str) -> str:
    member = member_of(uri)
    whole = member.tar if member else uri
    until_s, key = _keys.get(whole, (0.0, ""))
    if time.monotonic() >= until_s:
        if len(_keys) >= KNOWN_OBJECTS:
            _keys.clear()
        key = content_key(whole)
        _keys[whole] = time.monotonic() + IDENTITY_S, key
    return f"{key}#{member.offset}+{member.size}" if member else key


def _blocks(uri: str, num_bytes: int) -> Iterator[bytes]:
    member = member_of(uri)
    whole, offset = (member.tar, member.offset) if member else (uri, 0)
    end = offset + num_bytes
    with RangeReader(whole) as reader:
        while offset < end:
            block = reader.read_at(offset, min(BLOCK_BYTES, end - offset))
            if not block:
                raise StoreError(f"{uri}: ends {end - offset} bytes early")
            offset += len(block)
            yield block


def _file_info(uri: str) -> FileInfo:
    info = _info(uri)
    if info.type == FileType.Directory:
        raise StoreError(f"{uri}: is a folder")
    if info.type == FileType.NotFound:
        raise StoreError(missing(uri))
    return info


def _info(uri: str) -> FileInfo:
    store, path = store_of(uri)
    return _ask(uri, lambda: store.get_file_info(path))


def _ask(uri: str, call: Callable[[], T]) -> T:
    try:
        return with_retries(uri, call, is_remote=is_remote(uri))
    except StoreError as error:
        raise StoreError(missing(uri)) if str(error).endswith("no such object") else error from None


def missing(uri: str) -> str:
    """In words, what is not there. Stores tell an object of no bucket as a missing object."""
    if not is_remote(uri):
        return f"{uri}: no such file or folder"
    store, path = store_of(uri)
    try:
        bucket = store.get_file_info(path.partition("/")[0])
    except (OSError, pa.ArrowException):  # one may read objects and yet not ask for their bucket
        return f"{uri}: no such object"
    return f"{uri}: no such {'bucket' if bucket.type == FileType.NotFound else 'object'}"


@lru_cache(maxsize=8)
def _spool(folder: Path, max_bytes: int) -> Spool:
    return Spool(folder, max_bytes)
