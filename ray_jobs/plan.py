"""The plan: which clips exist, and the one sequence of micro-batches that training reads.

Training step k reads the positions [k * G, (k + 1) * G) of the stream, with G = train.micro_batches at any
number of workers, so where training stands is one integer. The schedule says which source gives a position;
a source's micro-batches come in passes over its own samples, each shuffled anew. "epoch" is the number of
that pass.
"""

# pyarrow makes the functions of pyarrow.compute when it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_jobs.buckets import Bucket, buckets_of
from ray_jobs.cuts import Cuts, actions, make_cuts, transcripts
from ray_jobs.errors import UserError
from ray_jobs.manifest_columns import ManifestColumns
from ray_jobs.passes import PADDING, Pass, shuffled_pass
from ray_jobs.schedule import Phase, Schedule, schedule_of
from worldmodel.config import RunConfig

# S steps, K slots of one rank in one step, B clips of a micro-batch.

Split = Literal["train", "held_out"]
PLAN_VERSION = 3
ROWS_PER_GROUP = 512


@dataclass(frozen=True)
class Sample:
    """One planned clip: [start_s, end_s) of a file, of which the first valid_s seconds hold media.

    caption: what is to be seen and heard. transcript: what is said between start_s and end_s.
    actions: JSON, one row per frame at data.fps. content_sha256 names the bytes that were indexed.
    weight: share of its source in the mixture. forgotten: its place is kept and nothing else.
    """

    sample_id: int
    split: Split
    source: str
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
    forgotten: bool

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
    """Every sample once, sample_id dense from 0: first the train samples, then the held-out ones.

    identity: the hash that the plan was made with; what is forgotten later does not change it.
    """

    table: pa.Table
    seed: int
    buckets: tuple[Bucket, ...]
    schedule: Schedule
    sources: tuple[str, ...] = ("clips",)
    identity: str = ""
    _passes: dict[tuple[int, int], Pass] = field(default_factory=dict, init=False, compare=False, repr=False)

    @cached_property
    def num_train(self) -> int:
        return pc.sum(pc.equal(self.table["split"], "train")).as_py() or 0

    @property
    def num_samples(self) -> int:
        return self.table.num_rows

    @cached_property
    def held_out_ids(self) -> np.ndarray:
        return np.arange(self.num_train, self.num_samples)

    @cached_property
    def forgotten_ids(self) -> np.ndarray:
        return np.flatnonzero(self.table["forgotten"].to_numpy())

    @cached_property
    def bucket_of(self) -> np.ndarray:
        """Index into `buckets` of each sample, int16."""
        numbers = {bucket.name: number for number, bucket in enumerate(self.buckets)}
        encoded = self.table["bucket"].combine_chunks().dictionary_encode()
        known = np.array([numbers[name] for name in encoded.dictionary.to_pylist()], dtype=np.int16)
        return known[encoded.indices.to_numpy()]

    @cached_property
    def num_batches_per_pass(self) -> tuple[int, ...]:
        """Of each source."""
        return tuple(
            sum(-(-len(ids) // self.buckets[bucket].batch_clips) for bucket, ids in own.items())
            for own in self._train_ids
        )

    @cached_property
    def num_batches_per_epoch(self) -> int:
        """Micro-batches of one pass over every source."""
        return sum(self.num_batches_per_pass)

    @cached_property
    def hash(self) -> str:
        """Equal for equal samples in equal order, wherever the files lie and whatever was forgotten since."""
        return self.identity or self._digest()

    def sample(self, sample_id: int) -> Sample:
        if not 0 <= sample_id < self.num_samples:
            raise IndexError(f"sample {sample_id} is not in the plan of {self.num_samples}")
        return Sample(**self.table.slice(sample_id, 1).to_pylist()[0])

    def bucket(self, sample_ids_B: np.ndarray) -> Bucket:
        """The bucket of a micro-batch; that of the empty one is the first."""
        real = sample_ids_B[sample_ids_B != PADDING]
        return self.buckets[self.bucket_of[real[0]] if len(real) else 0]

    def batch_at(self, position: int) -> tuple[int, int, np.ndarray]:
        """(epoch, batch_id, sample ids) at a position; -1 is the empty micro-batch (-1, -1, all padding)."""
        if position < 0:
            return -1, -1, np.full(self.buckets[0].batch_clips, PADDING, dtype=np.int64)
        source, number = self.schedule.at(position)
        epoch, batch_id = divmod(number, self.num_batches_per_pass[source])
        return epoch, batch_id, self.pass_of(source, epoch).batch(batch_id)

    def sample_ids_before(self, position: int) -> dict[int, np.ndarray]:
        """epoch -> sorted ids of every sample that lies before the position."""
        before: dict[int, list[np.ndarray]] = {}
        for source, count in enumerate(self.schedule.counts(position)):
            if not count:
                continue
            epochs, batches = divmod(count, self.num_batches_per_pass[source])
            all_ids = np.concatenate(list(self._train_ids[source].values()))
            for epoch in range(epochs):
                before.setdefault(epoch, []).append(all_ids)
            if batches:
                one = self.pass_of(source, epochs)
                ids = one.ids[: one.starts[batches]]
                before.setdefault(epochs, []).append(ids[ids != PADDING])
        return {epoch: np.sort(np.concatenate(ids)) for epoch, ids in sorted(before.items())}

    def pass_of(self, source: int, epoch: int) -> Pass:
        """The micro-batches of one pass. One bucket each; the last of a bucket is padded."""
        key = (source, epoch)
        if key not in self._passes:
            for old in [k for k in self._passes if k[0] == source][:-1]:  # this pass and the next are enough
                self._passes.pop(old)
            sizes = [bucket.batch_clips for bucket in self.buckets]
            self._passes[key] = shuffled_pass(
                self._train_ids[source], sizes, seed=self.seed, source=source, epoch=epoch
            )
        return self._passes[key]

    def save(self, path: str | Path) -> None:
        """Atomic: a reader sees the whole plan or the one before."""
        digest = self._digest()
        about = {
            "version": PLAN_VERSION,
            "seed": self.seed,
            "buckets": [asdict(bucket) for bucket in self.buckets],
            "phases": [asdict(phase) for phase in self.schedule.phases],
            "sources": self.sources,
            "hash": self.identity or digest,
            "digest": digest,
        }
        table = self.table.replace_schema_metadata({"plan": json.dumps(about)})
        partial = Path(path).with_name(f".{Path(path).name}.partial")
        pq.write_table(table, partial, row_group_size=max(ROWS_PER_GROUP, table.num_rows // 64))
        partial.replace(path)

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
        plan = cls(
            table.cast(PLAN_SCHEMA),
            seed=about["seed"],
            buckets=tuple(Bucket(**{**b, "size": tuple(b["size"])}) for b in about["buckets"]),
            schedule=Schedule(tuple(Phase(**{**p, "shares": tuple(p["shares"])}) for p in about["phases"])),
            sources=tuple(about["sources"]),
            identity=about["hash"],
        )
        if plan._digest() != about["digest"]:
            raise UserError(f"{path}: its samples are not those it was saved with; make it anew")
        return plan

    def _digest(self) -> str:
        facts = [PLAN_VERSION, self.seed, *map(asdict, self.buckets), *map(asdict, self.schedule.phases)]
        digest = hashlib.sha256(json.dumps([*facts, self.sources]).encode())
        for name in self.table.column_names:
            if name not in _PLACES:
                digest.update(name.encode())
                _digest_column(digest, self.table[name])
        return digest.hexdigest()[:16]

    @cached_property
    def _train_ids(self) -> tuple[dict[int, np.ndarray], ...]:
        """Of each source: bucket -> its train samples."""
        buckets = self.bucket_of[: self.num_train]
        encoded = self.table["source"].combine_chunks().dictionary_encode()
        names, indices = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()[: self.num_train]
        own = []
        for source in self.sources:
            mine = (
                np.flatnonzero(indices == names.index(source)) if source in names else np.zeros(0, np.int64)
            )
            own.append({int(b): mine[buckets[mine] == b] for b in np.unique(buckets[mine])})
        return tuple(own)


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


def make_plan(manifests: str | Mapping[str, str], cfg: RunConfig) -> Plan:
    """Cut the clips of indexed manifests into samples and decide the split. UserError if none is left.

    manifests: of each source of the mixture by its name, or the one of data.manifest.
    """
    by_source = {"clips": manifests} if isinstance(manifests, str) else dict(manifests)
    try:
        buckets = buckets_of(cfg)
    except ValueError as error:
        raise UserError(str(error)) from None
    manifest = ManifestColumns(by_source)
    cuts = make_cuts(manifest, cfg, buckets)
    plan = Plan(
        _samples(manifest, cuts, cfg, buckets),
        seed=cfg.seed,
        buckets=buckets,
        schedule=schedule_of(cfg),
        sources=tuple(by_source),
    )
    _check_sources(plan, by_source, manifest.num_rows)
    return plan


def _samples(manifest: ManifestColumns, cuts: Cuts, cfg: RunConfig, buckets: tuple[Bucket, ...]) -> pa.Table:
    """PLAN_SCHEMA, filled column by column: the worst moment holds one column of the manifest besides."""
    count, source_S = len(cuts.row_S), manifest.source_N[cuts.row_S]
    weights = {source.name: source.weight for source in cfg.data.sources}
    weight_K = np.array([weights.get(name, 1.0) for name in manifest.by_source])
    given = {
        "sample_id": np.arange(count),
        "split": _named(cuts.held_out_S.astype(np.int16), ["train", "held_out"]),
        "source": _named(source_S, list(manifest.by_source)),
        "start_s": cuts.start_S,
        "end_s": cuts.end_S,
        "valid_s": cuts.valid_S,
        "transcript": transcripts(manifest, cuts),
        "actions": actions(manifest, cuts, cfg),
        "bucket": _named(cuts.bucket_S.astype(np.int16), [bucket.name for bucket in buckets]),
        "weight": weight_K[source_S],
        "seed": np.full(count, cfg.seed),
        "forgotten": np.zeros(count, dtype=bool),
    }
    rows = pa.array(cuts.row_S)
    columns = {
        name: given[name] if name in given else manifest[name].take(rows) for name in PLAN_SCHEMA.names
    }
    return pa.table(columns, schema=PLAN_SCHEMA)


def _named(number_S: np.ndarray, names: list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(number_S, names).cast(pa.string())


def _check_sources(plan: Plan, by_source: Mapping[str, str], rows: int) -> None:
    """Every source that a phase draws from must have something to give."""
    where = ", ".join(by_source.values())
    if not plan.num_train:
        raise UserError(f"{where}: nothing to train on; it holds {rows} clips and none is for training")
    drawn = np.sum([phase.shares for phase in plan.schedule.phases], axis=0) > 0
    empty = [
        name
        for name, used, count in zip(plan.sources, drawn, plan.num_batches_per_pass, strict=True)
        if used and not count
    ]
    if empty:
        raise UserError(
            f"{', '.join(by_source[name] for name in empty)}: nothing to train on in {', '.join(empty)}; "
            "take it out of data.mixture or add clips"
        )


def _digest_column(digest: Any, column: pa.ChunkedArray) -> None:
    """The same for the same values, however they are chunked: lengths and bytes, never Python objects."""
    if pa.types.is_string(column.type):
        digest.update(pc.binary_length(column).to_numpy().astype(np.int32).tobytes())
        for chunk in column.chunks:
            offsets = np.frombuffer(chunk.buffers()[1], dtype=np.int32)[
                chunk.offset : chunk.offset + len(chunk) + 1
            ]
            if len(chunk) and (data := chunk.buffers()[2]) is not None:
                digest.update(memoryview(data)[offsets[0] : offsets[-1]])
    else:
        digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
