"""The plan: which clips exist, and the one finite sequence of micro-batches that training reads.

The global index of a micro-batch is epoch * batches_per_epoch + batch_id. Training step k reads the indices
[k * G, (k + 1) * G) with G = train.micro_batches at any number of workers, so a position is one integer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from einops import rearrange

from ray_jobs.actions import resampled
from ray_jobs.errors import UserError
from ray_jobs.index import read_manifest
from worldmodel.config import RunConfig

# S steps, K slots of one rank in one step, B clips of a micro-batch.

Split = Literal["train", "held_out"]
PADDING = -1
PLAN_VERSION = 2
ROWS_PER_GROUP = 512


@dataclass(frozen=True)
class Sample:
    """One planned clip: [start_s, end_s) of a file, of which the first valid_s seconds hold media.

    caption: what is to be seen and heard. transcript: what is said between start_s and end_s.
    actions: JSON, one row per frame at data.fps. content_sha256 names the bytes that were indexed.
    """

    sample_id: int
    split: Split
    uri: str
    audio_uri: str
    start_s: float
    end_s: float
    valid_s: float
    has_video: bool
    has_sound: bool
    caption: str
    transcript: str
    actions: str
    content_sha256: str
    group: str
    bucket: str
    weight: float
    seed: int

    @property
    def text(self) -> str:
        """What people read of it."""
        return self.caption or self.transcript


_ARROW = {
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "str": pa.string(),
    "Split": pa.string(),
}
PLAN_SCHEMA = pa.schema([(f.name, _ARROW[str(f.type)]) for f in fields(Sample)])
_PLACES = ("uri", "audio_uri")  # where the media lie may change between runs; what they are may not


@dataclass(frozen=True)
class Plan:
    """Every sample once, sample_id dense from 0: first the train samples, then the held-out ones."""

    table: pa.Table
    seed: int
    batch_clips: int

    @cached_property
    def num_train(self) -> int:
        return sum(split == "train" for split in self.table["split"].to_pylist())

    @property
    def num_samples(self) -> int:
        return self.table.num_rows

    @cached_property
    def held_out_ids(self) -> np.ndarray:
        return np.arange(self.num_train, self.num_samples)

    @cached_property
    def num_batches_per_epoch(self) -> int:
        return sum(-(-len(ids) // self.batch_clips) for ids in self._train_by_bucket.values())

    @cached_property
    def hash(self) -> str:
        """Equal for equal samples in equal order, wherever the files lie."""
        digest = hashlib.sha256(f"{PLAN_VERSION} {self.seed} {self.batch_clips}".encode())
        for name in self.table.column_names:
            if name not in _PLACES:
                digest.update(json.dumps([name, self.table[name].to_pylist()]).encode())
        return digest.hexdigest()[:16]

    def sample(self, sample_id: int) -> Sample:
        if not 0 <= sample_id < self.num_samples:
            raise IndexError(f"sample {sample_id} is not in the plan of {self.num_samples}")
        return Sample(**self.table.slice(sample_id, 1).to_pylist()[0])

    def batch(self, epoch: int, batch_id: int) -> np.ndarray:
        """Sample ids of one micro-batch, int64 [B]; -1 is padding."""
        return self._epoch_batches(epoch)[batch_id]

    def batch_at(self, global_index: int) -> tuple[int, int, np.ndarray]:
        """(epoch, batch_id, sample ids) of a global index; -1 is the empty one (-1, -1, all padding)."""
        if global_index < 0:
            return -1, -1, np.full(self.batch_clips, PADDING, dtype=np.int64)
        epoch, batch_id = divmod(global_index, self.num_batches_per_epoch)
        return epoch, batch_id, self.batch(epoch, batch_id)

    def sample_ids_before(self, global_index: int) -> dict[int, np.ndarray]:
        """epoch -> sorted ids of every sample that lies before the position."""
        epochs, batches = divmod(global_index, self.num_batches_per_epoch)
        before = dict.fromkeys(range(epochs), np.arange(self.num_train))
        if batches:
            ids = self._epoch_batches(epochs)[:batches].ravel()
            before[epochs] = np.sort(ids[ids != PADDING])
        return before

    def save(self, path: str | Path) -> None:
        about = {
            "version": PLAN_VERSION,
            "seed": self.seed,
            "batch_clips": self.batch_clips,
            "hash": self.hash,
        }
        table = self.table.replace_schema_metadata({"plan": json.dumps(about)})
        pq.write_table(table, path, row_group_size=ROWS_PER_GROUP)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """UserError if the file is no plan or was changed by hand."""
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise UserError(f"{path}: not a plan: {error}") from error
        about = json.loads((table.schema.metadata or {}).get(b"plan", b"{}"))
        if about.get("version") != PLAN_VERSION:
            raise UserError(f"{path}: plan version {about.get('version')}, not {PLAN_VERSION}; make it anew")
        plan = cls(table.cast(PLAN_SCHEMA), seed=about["seed"], batch_clips=about["batch_clips"])
        if plan.hash != about["hash"]:
            raise UserError(
                f"{path}: its samples hash to {plan.hash}, it was saved as {about['hash']}; make it anew"
            )
        return plan

    @cached_property
    def _train_by_bucket(self) -> dict[str, np.ndarray]:
        buckets = np.array(self.table["bucket"].to_pylist()[: self.num_train], dtype=object)
        return {bucket: np.flatnonzero(buckets == bucket) for bucket in sorted(set(buckets))}

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def _epoch_batches(self, epoch: int) -> np.ndarray:
        """Every micro-batch of an epoch, [batches, B]. One bucket each; the last of a bucket is padded."""
        if epoch not in self._orders:
            while len(self._orders) > 1:  # a stream needs at most this epoch and the next
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = self._shuffled_batches(epoch)
        return self._orders[epoch]

    def _shuffled_batches(self, epoch: int) -> np.ndarray:
        random = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64))
        batches = []
        for ids in self._train_by_bucket.values():
            padded = np.full(-(-len(ids) // self.batch_clips) * self.batch_clips, PADDING, dtype=np.int64)
            padded[: len(ids)] = ids[_shuffled(random, len(ids))]
            batches.append(rearrange(padded, "(batches b) -> batches b", b=self.batch_clips))
        mixed = np.concatenate(batches)
        return mixed if len(batches) == 1 else mixed[_shuffled(random, len(mixed))]


def rank_slots(
    *, start_step: int, end_step: int, micro_batches: int, rank: int, world_size: int
) -> np.ndarray:
    """Global index of each micro-batch that a rank reads, int64 [S, K]; -1 is an empty one.

    Every rank has K = ceil(G / world_size) a step; of the G real ones it takes rank, rank + world_size, ...
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: the rank must lie in [0, world size)")
    step_S1 = np.arange(start_step, end_step, dtype=np.int64)[:, None]
    slot_1K = rank + world_size * np.arange(-(-micro_batches // world_size), dtype=np.int64)[None]
    return np.where(slot_1K < micro_batches, step_S1 * micro_batches + slot_1K, PADDING)


def make_plan(manifest_path: str, cfg: RunConfig) -> Plan:
    """Cut the clips of an indexed manifest into samples and decide the split. UserError if none is left."""
    rows = read_manifest(manifest_path).to_pylist()
    held_out = _held_out_groups({row["group"] for row in rows}, cfg.data.held_out)
    samples = [cut | {"split": _split(row, held_out)} for row in rows for cut in _cuts(row, cfg)]
    samples.sort(key=lambda sample: sample["split"] != "train")  # stable: the manifest's order within a split
    if not samples or samples[0]["split"] != "train":
        raise UserError(
            f"{manifest_path}: nothing to train on; it holds {len(rows)} clips and none is for training"
        )
    for sample_id, sample in enumerate(samples):
        sample["sample_id"] = sample_id
    return Plan(
        pa.Table.from_pylist(samples, schema=PLAN_SCHEMA), seed=cfg.seed, batch_clips=cfg.data.batch_clips
    )


def _cuts(row: dict[str, Any], cfg: RunConfig) -> list[dict[str, Any]]:
    """Whole clips of a span; a rest is dropped, a span shorter than a clip is one with an invalid tail."""
    clip_s, frame_s = cfg.data.clip_s, 1 / cfg.data.fps
    is_image = row["duration_s"] == 0
    span_s = cfg.chunk_s if is_image else row["end_s"] - row["start_s"]
    actions = json.loads(row["actions"]) if row["actions"] else []
    if actions and len(actions[0]) > cfg.model.action_dim:
        raise UserError(
            f"{row['uri']}: actions are {len(actions[0])} wide, model.action_dim is {cfg.model.action_dim}; "
            f"use --set model.action_dim={len(actions[0])}"
        )
    if actions:  # one per frame of the file
        told_FA, start_s = np.array(actions), row["start_s"]
        actions = resampled(told_FA, clip_hz=row["fps"], grid_hz=cfg.data.fps, start_s=start_s).tolist()
    cuts = []
    for i in range(max(1, int((span_s + frame_s) / clip_s))):  # containers round a duration by up to a frame
        first_frame = round(i * clip_s * cfg.data.fps)
        own_actions = actions[first_frame : first_frame + round(clip_s * cfg.data.fps)]
        cuts.append(
            {
                **{name: row[name] for name in ("uri", "audio_uri", "has_video", "content_sha256", "group")},
                "has_sound": row["has_sound"],
                "start_s": row["start_s"] + i * clip_s,
                "end_s": row["start_s"] + (i + 1) * clip_s,
                "valid_s": min(clip_s, span_s - i * clip_s),
                "caption": row["caption"],
                "transcript": _said(row, row["start_s"] + i * clip_s, row["start_s"] + (i + 1) * clip_s),
                "actions": json.dumps(own_actions) if own_actions else "",
                "bucket": f"{clip_s:g}s-{cfg.data.size[0]}x{cfg.data.size[1]}-{cfg.data.fps}fps",
                "weight": 1.0,
                "seed": cfg.seed,
            }
        )
    return cuts


def _said(row: dict[str, Any], start_s: float, end_s: float) -> str:
    """Timed words that begin in the cut. A transcript without times is all there is of every cut."""
    cues = json.loads(row["speech_json"]) if row["speech_json"] else []
    timed = [cue for cue in cues if "start" in cue]
    if not timed:
        return row["transcript"] or " ".join(cue["text"] for cue in cues)
    return " ".join(cue["text"] for cue in timed if start_s <= float(cue["start"]) < end_s)


def _held_out_groups(groups: set[str], fraction: float) -> set[str]:
    """Groups whose hash lies below the fraction: adding files moves no other. At least one on each side."""
    if fraction == 0 or len(groups) < 2:
        return set()
    by_hash = sorted(groups, key=_unit_hash)
    held_out = {group for group in groups if _unit_hash(group) < fraction} or {by_hash[0]}
    return held_out - {by_hash[-1]}


def _unit_hash(group: str) -> float:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64


def _split(row: dict[str, Any], held_out: set[str]) -> Split:
    return "held_out" if row["group"] in held_out else "train"


def _shuffled(random: np.random.Philox, count: int) -> np.ndarray:
    """A permutation from raw bits: numpy keeps them, unlike Generator.permutation, over versions."""
    return np.argsort(random.random_raw(count), kind="stable")
