"""The reader of a process, as the configuration wants it, and what it reads."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from avtok.media import Limits
from avtok.reader import ClipReader, open_reader
from ray_jobs.stores import local_copy, member_of, node_spool
from worldmodel.config import DataConfig


def reader_of(data: DataConfig) -> ClipReader:
    """One for each process, whatever asks for it: an actor has one decoder, which ends with the actor."""
    limits = Limits(**data.limits.model_dump()) if data.sandbox else None
    return _reader(data.decoder, limits)


def local_file(uri: str, data: DataConfig) -> str:
    """A local path of the bytes at `uri`: itself, or a copy in the spool. StoreError when there is none."""
    if "://" not in uri and member_of(uri) is None:
        return uri
    return str(local_copy(uri, spool=node_spool(data.spool_gb)))


def bytes_read(reader: ClipReader) -> int:
    """What the process that decodes has read of files so far, from the page cache or not; 0: not known."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{reader.pid}/io").read_text().splitlines():
            if line.startswith("rchar:"):
                return int(line.partition(":")[2])
    return 0


def kills_of(reader: ClipReader) -> int:
    """Decoders that were killed or died so far; one that runs in this process takes it along."""
    return int(getattr(reader, "num_kills", 0))


@lru_cache(maxsize=2)
def _reader(decoder: str, limits: Limits | None) -> ClipReader:
    return open_reader(decoder, limits=limits)
