"""Plans without media: only what orders samples is filled in."""

from __future__ import annotations

from collections.abc import Sequence

from ray_jobs.buckets import Bucket
from ray_jobs.plan import PLAN_SCHEMA, Plan
from ray_jobs.schedule import Phase, Schedule

ONE_PHASE = (Phase("training", None, (1.0,)),)


def tiny_plan(
    bucket_sizes: Sequence[int] | Sequence[Sequence[int]],
    *,
    batch_clips: int | Sequence[int] = 3,
    seed: int = 0,
    held_out: int = 2,
    phases: tuple[Phase, ...] = ONE_PHASE,
) -> Plan:
    """Train samples of each bucket (of each source, where there are several), and held-out ones."""
    by_source = [bucket_sizes] if isinstance(bucket_sizes[0], int) else bucket_sizes
    num_buckets = max(len(sizes) for sizes in by_source)
    clips = [batch_clips] * num_buckets if isinstance(batch_clips, int) else list(batch_clips)
    empty = {
        field.name: {"string": "", "bool": False}.get(
            str(field.type), 1.0 if str(field.type) == "double" else 0
        )
        for field in PLAN_SCHEMA
    }
    places = [
        (s, b) for s, sizes in enumerate(by_source) for b, size in enumerate(sizes) for _ in range(size)
    ]
    rows = [
        empty | {"split": "train", "source": f"source {s}", "bucket": f"bucket {b}"} for s, b in places
    ] + [empty | {"split": "held_out", "source": "source 0", "bucket": "bucket 0"}] * held_out
    rows = [row | {"sample_id": i, "uri": f"{i}.mp4"} for i, row in enumerate(rows)]
    return Plan(
        PLAN_SCHEMA.empty_table().from_pylist(rows, schema=PLAN_SCHEMA),
        seed=seed,
        buckets=tuple(Bucket(f"bucket {b}", "picture", 1.0, (64, 64), clips[b]) for b in range(num_buckets)),
        schedule=Schedule(phases),
        sources=tuple(f"source {s}" for s in range(len(by_source))),
    )
