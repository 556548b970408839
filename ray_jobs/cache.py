"""The latent cache: one safetensors file a clip, in a local folder or a store.

FOLDER/<first two letters>/<content_sha256>/<name>.safetensors: all that was made from one file's bytes shares
a prefix, so what must be forgotten is found by one listing. The name says all that the latents depend on, so
reading needs no listing. One file for everything of a clip (latents, targets, masks), some 100 kB to some MB:
an object store charges and waits by request, so a file for each array would cost several times as much,
while shards of many clips could neither be resumed nor forgotten clip by clip.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load, save

from avtok.spec import CodecSpec
from ray_jobs.plan import Sample
from ray_jobs.store_clients import StoreError, with_retries
from ray_jobs.stores import exists, is_remote, list_files, open_input, store_of
from worldmodel.config import DataConfig

if TYPE_CHECKING:
    from ray_jobs.clip_encoder import Geometry

LATENTS_VERSION = 2  # raise it when encoding changes, so that old files are never read
SUFFIX = ".safetensors"


class CacheWriteError(Exception):
    """The cache cannot be written (a full disk, a read-only folder). The latents are still good."""


@dataclass(frozen=True)
class LatentCache:
    """Files under `folder`; an empty folder name is no cache. targets: what those of the clips depend on."""

    folder: str
    specs: tuple[CodecSpec, CodecSpec]
    data: DataConfig
    targets: list[Any] = field(default_factory=list)

    def read(self, sample: Sample, geometry: Geometry) -> dict[str, np.ndarray] | None:
        """Arrays of a clip, or None if it is not there. A file that cannot be read counts as not there."""
        if not self.folder:
            return None
        try:
            return load(_read(self.uri(sample, geometry)))
        except (OSError, pa.ArrowException, StoreError, SafetensorError):
            return None

    def holds(self, sample: Sample, geometry: Geometry) -> bool:
        """Whether the file is there, without reading it. False for a store that does not answer."""
        if not self.folder:
            return False
        uri = self.uri(sample, geometry)
        try:
            return exists(uri) if is_remote(uri) else Path(uri).is_file()
        except StoreError:
            return False

    def write(self, sample: Sample, geometry: Geometry, arrays: dict[str, np.ndarray]) -> int:
        """Atomic: a reader sees the whole file or none. Returns its bytes. CacheWriteError if the folder
        cannot be written."""
        if not self.folder:
            return 0
        about = {
            "content_sha256": sample.content_sha256,
            "start_s": str(sample.start_s),
            "end_s": str(sample.end_s),
        }
        whole = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=about)
        _write(self.uri(sample, geometry), whole)
        return len(whole)

    def uri(self, sample: Sample, geometry: Geometry) -> str:
        """Where the file of a clip lies, whether it is there or not."""
        key = {
            "version": LATENTS_VERSION,
            "content": sample.content_sha256,
            "codecs": [[spec.name, spec.content_hash, spec.scale] for spec in self.specs],
            "targets": self.targets,
            "cut": [round(sample.start_s, 6), round(sample.end_s, 6), round(sample.valid_s, 6)],
            "modalities": [sample.has_video, sample.has_sound],
            "grid": [self.data.fps, *geometry.size, self.data.sample_rate],
            "steps": [geometry.video_steps, geometry.audio_steps],
        }
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        return f"{self._of_content(sample.content_sha256)}/{name}{SUFFIX}"

    def files_of(self, content_sha256: str) -> list[str]:
        """Every file that was made from these bytes, of any run that uses this folder."""
        return list(cache_files(self._of_content(content_sha256))) if self.folder else []

    def _of_content(self, content_sha256: str) -> str:
        return f"{self.folder.rstrip('/')}/{content_sha256[:2]}/{content_sha256}"


def cache_files(folder: str) -> Iterator[str]:
    """Every file of a cache, sorted; none where there is no folder. StoreError if it cannot be listed."""
    if exists(folder):
        yield from (uri for uri in list_files(folder) if uri.endswith(SUFFIX))


def content_of(uri: str) -> str:
    """The content_sha256 in whose folder a file of a cache lies."""
    return uri.rstrip("/").rsplit("/", 2)[1]


def _read(uri: str) -> bytes:
    if not is_remote(uri):
        return Path(uri).read_bytes()
    with open_input(uri) as file:
        return file.read()


def _write(uri: str, whole: bytes) -> None:
    if is_remote(uri):  # an object appears when it is complete
        store, path = store_of(uri)

        def put() -> None:
            with store.open_output_stream(path) as file:
                file.write(whole)

        try:
            with_retries(uri, put, is_remote=True)
        except StoreError as error:
            raise CacheWriteError(f"cannot write the latent cache: {error}") from error
        return
    path = Path(uri)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # ranks may write the same clip at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(whole)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # a full disk keeps no half files
            partial.unlink()
        raise CacheWriteError(f"{path.parent}: cannot write the latent cache: {error.strerror}") from error
