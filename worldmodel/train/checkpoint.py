"""Checkpoints as sharded safetensors that re-slice to any world size. Never pickle.

A checkpoint folder holds shard-RRRRR-of-WWWWW.safetensors of each rank (flat fp32 slices named
kind/parameter; which of each parameter, [start, length], is in its header), shard-RRRRR-of-WWWWW.sha256
beside it, and model.json (step, parameter shapes, world size, model description). A shard is hashed before
anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldmodel.reasons import DAMAGED_COMMIT
from worldmodel.train.engine import TEACHER_PREFIX, Engine, ParameterShard, slice_of_rank

MODEL_FILE, HASH, INTERVALS = "model.json", ".sha256", "intervals"


class CheckpointMismatch(ValueError):
    """The checkpoint does not fit the model or is damaged; the message names what differs or what is
    missing."""


def shard_name(rank: int, world_size: int) -> str:
    return f"shard-{rank:05d}-of-{world_size:05d}.safetensors"


def content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checkpoint(folder: Path, engine: Engine, step: int, description: dict[str, Any]) -> None:
    """Writes this rank's shard; rank 0 also writes model.json. OSError when the disk is full."""
    Snapshot.of(engine).write(folder, step, description)


@dataclass(frozen=True)
class Snapshot:
    """This rank's shards on the host, by kind/parameter, to be written while training goes on."""

    rank: int
    world_size: int
    shapes: dict[str, tuple[int, ...]]
    intervals: dict[str, tuple[int, int]]  # start and length, which may be 0
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, engine: Engine) -> Snapshot:
        """Memory that `take` fills again and again; on the CPU it is page-locked for a GPU's sake."""
        shards = _shards_to_write(engine)
        on_gpu = engine.device.type == "cuda"
        tensors = {
            f"{kind}/{name}": torch.empty(part.shape, dtype=part.dtype, pin_memory=on_gpu)
            for name, shard in shards.items()
            for kind, part in shard.parts.items()
        }
        shapes = {name: shard.shape for name, shard in shards.items()}
        intervals = {name: (shard.start, shard.length) for name, shard in shards.items()}
        return cls(engine.rank, engine.world_size, shapes, intervals, tensors).take(engine)

    @torch.no_grad()
    def take(self, engine: Engine) -> Snapshot:
        """Copies the engine's shards; when it returns the engine may change them."""
        parts = [part for shard in _shards_to_write(engine).values() for part in shard.parts.values()]
        torch._foreach_copy_(list(self.tensors.values()), parts, non_blocking=True)  # pyright: ignore
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        return self

    def write(self, folder: Path, step: int, description: dict[str, Any]) -> None:
        """The shard and its hash; rank 0 also writes model.json. On the disk when it returns, not on its way
        there. OSError when there is no space."""
        shard = folder / shard_name(self.rank, self.world_size)
        save_file(self.tensors, str(shard), metadata={INTERVALS: json.dumps(self.intervals)})
        written = shard.with_suffix(HASH)
        written.write_text(content_hash(shard))
        files = [shard, written]
        if self.rank == 0:
            about = {"step": step, "world_size": self.world_size, "shapes": self.shapes, **description}
            files.append(folder / MODEL_FILE)
            files[-1].write_text(json.dumps(about, indent=1))
        for file in files:
            flush_to_disk(file)


def _shards_to_write(engine: Engine) -> dict[str, ParameterShard]:
    """What this rank writes: its shards, or its share of what every rank holds."""
    shards = engine.shards()
    if not engine.is_replicated:
        return shards
    shares = {}
    for name, shard in shards.items():
        start, end = slice_of_rank(shard.numel, engine.rank, engine.world_size)
        parts = {kind: part[start:end] for kind, part in shard.parts.items()}
        shares[name] = replace(shard, start=start, parts=parts)
    return shares


def flush_to_disk(file: Path) -> None:
    """OSError where a delayed write failed after all."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_model_file(folder: Path) -> dict[str, Any]:
    """Step, world size and shapes of a checkpoint. CheckpointMismatch when it is missing or not that."""
    try:
        about = json.loads((folder / MODEL_FILE).read_text())
        if missing := {"step", "world_size", "shapes"} - set(about):
            raise ValueError(f"no {', '.join(sorted(missing))}")
    except (OSError, ValueError, TypeError) as error:  # no JSON is a ValueError
        raise CheckpointMismatch(f"{folder / MODEL_FILE}: {_reason(error)}; {DAMAGED_COMMIT}") from None
    return about


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointMismatch(f"{path}: {_reason(error)}; {DAMAGED_COMMIT}") from None


def _reason(error: Exception) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else f"damaged or cut short ({error})"


class CheckpointReader:
    """Reads slices of parameters whatever world size and ZeRO stage wrote them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = read_model_file(folder)
        self.world_size = int(self.model["world_size"])
        self.files = [
            _open_shard(folder / shard_name(rank, self.world_size)) for rank in range(self.world_size)
        ]
        # None in checkpoints that were written before other stages than ZeRO-3 were.
        self.intervals = [json.loads((file.metadata() or {}).get(INTERVALS, "null")) for file in self.files]
        self.checked = set[int]()

    def check(self, rank: int) -> None:
        """CheckpointMismatch when a shard is not what was written. Once a shard."""
        if rank in self.checked:
            return
        shard = self.folder / shard_name(rank, self.world_size)
        written = shard.with_suffix(HASH)
        try:
            expected = written.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            if self.intervals[rank] is not None:  # older ones have no hash
                raise CheckpointMismatch(f"{written}: {_reason(error)}; {DAMAGED_COMMIT}") from None
        else:
            if (found := content_hash(shard)) != expected:
                hashes = f"sha256 {found[:12]}, not {expected[:12]}"
                raise CheckpointMismatch(
                    f"{shard}: changed since it was written ({hashes}); {DAMAGED_COMMIT}"
                )
        self.checked.add(rank)

    def slice(self, kind: str, name: str, start: int, end: int) -> Tensor:
        """[start, end) of a flattened parameter, fp32."""
        numel = int(torch.Size(self.model["shapes"][name]).numel())
        pieces = []
        for rank, file in enumerate(self.files):
            low, high = self._held(rank, name, numel)
            first, last = max(start, low), min(end, high)
            if first < last:
                self.check(rank)
                try:
                    pieces.append(file.get_slice(f"{kind}/{name}")[first - low : last - low])
                except SafetensorError as error:
                    shard = self.folder / shard_name(rank, self.world_size)
                    raise CheckpointMismatch(
                        f"{shard}: no {kind}/{name}: {error}; {DAMAGED_COMMIT}"
                    ) from None
        found = torch.cat(pieces) if pieces else torch.empty(0)
        if found.numel() != end - start:
            raise CheckpointMismatch(
                f"{self.folder}: its shards hold {found.numel()} of the {end - start} values of "
                f"{kind}/{name}; {DAMAGED_COMMIT}"
            )
        return found

    def _held(self, rank: int, name: str, numel: int) -> tuple[int, int]:
        """[start, end) of a flattened parameter in one shard."""
        intervals = self.intervals[rank]
        if intervals is None:
            return slice_of_rank(numel, rank, self.world_size)
        start, length = intervals.get(name, (0, 0))
        return start, start + length

    def whole(self, kind: str, name: str) -> Tensor:
        shape = self.model["shapes"][name]
        return self.slice(kind, name, 0, int(torch.Size(shape).numel())).reshape(shape)

    def ema_weights(self) -> dict[str, Tensor]:
        """The averaged transformer by its own parameter names: what is evaluated and exported."""
        names = [n for n in self.model["shapes"] if n.startswith(TEACHER_PREFIX)]
        return {n.removeprefix(TEACHER_PREFIX): self.whole("ema", n) for n in names}


@torch.no_grad()
def load_checkpoint(folder: Path, engine: Engine) -> int:
    """Fills the engine from a checkpoint of any world size; returns its step. CheckpointMismatch names what
    differs."""
    reader = CheckpointReader(folder)
    shards = engine.shards()
    saved = {name: tuple(shape) for name, shape in reader.model["shapes"].items()}
    ours = {name: shard.shape for name, shard in shards.items()}
    if saved != ours:
        differing = [n for n in sorted(saved.keys() | ours.keys()) if saved.get(n) != ours.get(n)]
        name = differing[0]
        raise CheckpointMismatch(
            f"{folder}: checkpoint of another model: {len(differing)} of {len(ours)} parameters differ, "
            f"first {name}: saved {saved.get(name)}, this model {ours.get(name)}; "
            f"use the config it was trained with or another name"
        )
    for name, shard in shards.items():
        for kind, part in shard.parts.items():
            part.copy_(reader.slice(kind, name, shard.start, shard.start + part.numel()))
    step = int(reader.model["step"])
    engine.loaded(step)
    return step
