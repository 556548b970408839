"""The latent cache: one safetensors file a clip, named by everything that its latents depend on."""

from __future__ import annotations

import hashlib
import json
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from avtok.spec import CodecSpec
from ray_jobs.plan import Sample
from worldmodel.config import DataConfig

LATENTS_VERSION = 1  # raise it when encoding changes, so that old files are never read


class CacheWriteError(Exception):
    """The cache cannot be written (a full disk, a read-only folder). The latents are still good."""


@dataclass(frozen=True)
class LatentCache:
    """Files under `folder`; an empty folder name is no cache."""

    folder: str
    specs: tuple[CodecSpec, CodecSpec]
    data: DataConfig

    def read(self, sample: Sample, size: tuple[int, int]) -> dict[str, np.ndarray] | None:
        """Arrays of a clip, or None if it is not there. A file that cannot be read counts as not there."""
        if not self.folder:
            return None
        try:
            return load(self.path(sample, size).read_bytes())
        except (OSError, SafetensorError):
            return None

    def write(self, sample: Sample, size: tuple[int, int], arrays: dict[str, np.ndarray]) -> None:
        """Atomic: a reader sees the whole file or none. CacheWriteError if the folder cannot be written."""
        if not self.folder:
            return
        path = self.path(sample, size)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # ranks may write the same clip at once
        about = {
            "content_sha256": sample.content_sha256,
            "start_s": str(sample.start_s),
            "end_s": str(sample.end_s),
        }
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(save(contiguous, metadata=about))
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):  # a full disk keeps no half files
                partial.unlink()
            raise CacheWriteError(
                f"{path.parent}: cannot write the latent cache: {error.strerror}"
            ) from error

    def path(self, sample: Sample, size: tuple[int, int]) -> Path:
        key = {
            "version": LATENTS_VERSION,
            "content": sample.content_sha256,
            "codecs": [[spec.name, spec.content_hash, spec.scale] for spec in self.specs],
            "cut": [round(sample.start_s, 6), round(sample.end_s, 6), round(sample.valid_s, 6)],
            "modalities": [sample.has_video, sample.has_sound],
            "grid": [self.data.fps, *size, self.data.sample_rate],
        }
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        return Path(self.folder) / name[:2] / f"{name}.safetensors"
