"""Facts of files: each is opened once, in a process that can be killed, and known until its bytes change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import WorkerCrashedError

from avtok.media import ClipError, Limits, MediaInfo
from avtok.reader import ClipReader, open_reader
from ray_jobs.cluster import tasks_at_once
from ray_jobs.stores import StoreError, content_key, local_copy

FILES_PER_TASK = 8
HASH_BLOCK_BYTES = 1 << 20
CRASHED = "the decoder crashed on this file"
PROBE_VERSION = f"1 {','.join(field.name for field in fields(MediaInfo))}"  # other facts: probe anew
PROBE_SCHEMA = pa.schema([(name, pa.string()) for name in ("uri", "stamp", "sha256", "info_json")])
Result = dict[str, Any]


class HasUri(Protocol):
    @property
    def uri(self) -> str: ...


@dataclass(frozen=True)
class MediaFile:
    uri: str


@dataclass(frozen=True)
class Probed:
    """Facts of one file, or the reason why there are none. stamp: another one where the bytes changed."""

    uri: str
    stamp: str = ""
    sha256: str = ""
    info: MediaInfo | None = None
    reason: str = ""


Given = TypeVar("Given", bound=HasUri)


def probe_files(
    uris: Sequence[str], *, limits: Limits | None, known: dict[str, Probed], workers: int | None = None
) -> Iterator[Probed]:
    """Facts of every file, in no order, from Ray tasks where Ray is initialised, else in this process.

    known: of an earlier index; a file whose stamp is still the same is not opened.
    """
    wanted: list[MediaFile] = []
    for uri in uris:
        if uri in known and known[uri].stamp == stamp_of(uri):
            yield known[uri]
        else:
            wanted.append(MediaFile(uri))
    probe_one = partial(probe_file, limits=limits)
    for i, result in in_tasks(wanted, probe_one, workers=workers):
        yield result if isinstance(result, Probed) else Probed(wanted[i].uri, reason=result["reason"])


def probe_file(file: HasUri, *, limits: Limits | None) -> Probed:
    uri = file.uri
    try:
        stamp, path = content_key(uri), local_copy(uri)
        info = reader_of(limits).probe(str(path))
        return Probed(uri, stamp, _sha256(path), info)
    except (ClipError, StoreError, OSError) as error:
        return Probed(uri, reason=reason_of(error, uri))


def reason_of(error: Exception, uri: str) -> str:
    """One line that names the address that was given, not the copy of its bytes."""
    said = " ".join(str(error).split())
    copy = str(local_copy_or(uri))
    return said.replace(copy, uri) if copy != uri else said


def local_copy_or(uri: str) -> Path | str:
    try:
        return local_copy(uri)
    except (ClipError, StoreError, OSError):
        return uri


@lru_cache(maxsize=1)
def reader_of(limits: Limits | None) -> ClipReader:
    """One decoder process for each process that reads; it starts anew after it was killed."""
    return open_reader(limits=limits)


def in_tasks(
    rows: Sequence[Given], work: Callable[[Given], Any], *, workers: int | None = None
) -> Iterator[tuple[int, Any]]:
    """(row number, result): in Ray tasks where Ray is initialised, else here."""
    if ray.is_initialized():
        yield from probe_in_tasks(rows, work, workers=workers)
    else:
        for i, row in enumerate(rows):
            yield i, work(row)


def probe_in_tasks(
    rows: Sequence[Given], probe_one: Callable[[Given], Any], *, workers: int | None = None
) -> Iterator[tuple[int, Any]]:
    """(row number, result) from Ray tasks of a few files, in the order in which they finish.

    A file that kills its worker (decoders are C) is found by probing its batch one by one, and its result
    is {uri, reason}.
    """

    def probe_batch(batch: list[Given]) -> list[Any]:
        return [probe_one(row) for row in batch]

    task = ray.remote(max_retries=0)(probe_batch)
    starts = range(0, len(rows), FILES_PER_TASK)
    waiting = [range(i, min(i + FILES_PER_TASK, len(rows))) for i in starts][::-1]
    running: dict[ray.ObjectRef, range] = {}
    limit = workers or tasks_at_once()
    while waiting or running:
        while waiting and len(running) < limit:
            batch = waiting.pop()
            running[task.remote([rows[i] for i in batch])] = batch
        ready, _ = ray.wait(list(running), num_returns=1)
        batch = running.pop(ready[0])
        try:
            results = ray.get(ready[0])
        except WorkerCrashedError:
            if len(batch) > 1:
                waiting += [range(i, i + 1) for i in batch]
                continue
            results = [{"uri": rows[batch[0]].uri, "reason": CRASHED}]
        yield from zip(batch, results, strict=True)


def stamp_of(uri: str) -> str:
    try:
        return content_key(uri)
    except (ClipError, StoreError, OSError):
        return ""


def save_probes(path: Path, probes: Sequence[Probed]) -> None:
    """What was learnt of usable files, for the next index of the same sources."""
    rows = [
        {"uri": p.uri, "stamp": p.stamp, "sha256": p.sha256, "info_json": json.dumps(asdict(p.info))}
        for p in probes
        if p.info is not None
    ]
    table = pa.Table.from_pylist(rows, PROBE_SCHEMA)
    pq.write_table(table.replace_schema_metadata({"probe": PROBE_VERSION}), path, compression="zstd")


def load_probes(path: Path) -> dict[str, Probed]:
    """By uri. Empty where nothing is known, or what is known was asked by another version."""
    try:
        table = pq.read_table(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return {}
    if (table.schema.metadata or {}).get(b"probe", b"").decode() != PROBE_VERSION:
        return {}
    return {
        row["uri"]: Probed(row["uri"], row["stamp"], row["sha256"], MediaInfo(**json.loads(row["info_json"])))
        for row in table.to_pylist()
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
