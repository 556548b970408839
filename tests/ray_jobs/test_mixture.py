"""Several sources, phases and buckets in one stream: proportions, and exactly once in every pass."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.accounting import Ledger
from ray_jobs.buckets import buckets_of, nearest_size
from ray_jobs.errors import UserError
from ray_jobs.plan import PADDING, Plan, make_plan, rank_slots
from ray_jobs.schedule import Phase, Schedule, schedule_of
from tests.ray_jobs.test_plan import write_manifest
from tests.ray_jobs.tiny_plans import tiny_plan
from worldmodel.config import RunConfig


def run_config(**data):
    values = {"clip_s": 1.0, "held_out": 0.0, "batch_clips": 4} | data
    return RunConfig.model_validate({"data": values, "rollout": {"prefix_s": 0.5}})


def shares(*weights):
    return tuple(weight / sum(weights) for weight in weights)


@given(weights=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4), count=st.integers(1, 300))
def test_every_stretch_of_a_phase_keeps_its_proportions(weights, count):
    schedule = Schedule((Phase("all", None, shares(*weights)),))
    for share, number in zip(shares(*weights), schedule.counts(count), strict=True):
        assert abs(number - share * count) <= len(weights) / 2 + 1
    assert sum(schedule.counts(count)) == count


def test_a_position_means_the_same_however_far_the_schedule_was_made():
    phases = (Phase("pre", 40, shares(3, 1)), Phase("post", None, shares(0, 1)))
    early, late = Schedule(phases), Schedule(phases)
    late.at(100_000)
    assert [early.at(n) for n in range(3000)] == [late.at(n) for n in range(3000)]
    assert early.counts(40) == [30, 10]
    assert early.counts(60) == [30, 30]  # the second source goes on where it stood
    assert early.at(40) == (1, 10)
    assert [early.phase_at(n) for n in (0, 39, 40, 10**6)] == ["pre", "pre", "post", "post"]


def test_phases_and_weights_come_from_the_config():
    mixture = [{"name": "film", "manifest": "a", "weight": 3}, {"name": "talk", "manifest": "b"}]
    phases = [{"name": "pre", "steps": 10}, {"name": "post", "weights": {"talk": 2}}]
    plain, phased = run_config(mixture=mixture), run_config(mixture=mixture, phases=phases)
    assert schedule_of(plain).phases == (Phase("training", None, (0.75, 0.25)),)
    assert schedule_of(phased).phases == (Phase("pre", 20, (0.75, 0.25)), Phase("post", None, (0.0, 1.0)))
    for bad, words in (
        ({"mixture": mixture, "manifest": "c"}, "not both"),
        ({"mixture": [*mixture, mixture[0]]}, "twice"),
        ({"mixture": mixture, "phases": [{"name": "p", "weights": {"song": 1}}]}, "song; sources are film"),
        ({"phases": [{"name": "p"}, {"name": "q"}]}, "but the last needs steps"),
        ({"phases": [{"name": "p", "steps": 5}]}, "the last goes to the end"),
        ({"mixture": mixture, "phases": [{"name": "p", "weights": {"talk": 0}}]}, "one above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            run_config(**bad)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=3),
    weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    batch_clips=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    first_phase=st.integers(0, 12),
    groups=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=4),
)
def test_in_every_pass_of_every_source_each_sample_is_consumed_or_remains_whatever_the_worker_groups(
    sizes, weights, batch_clips, first_phase, groups
):
    count = len(sizes)
    phases = (Phase("pre", first_phase, shares(*[1] * count)), Phase("main", None, shares(*weights[:count])))
    plan = tiny_plan(sizes, batch_clips=batch_clips, phases=phases)
    ledger, step, micro_batches = Ledger(plan.hash), 0, 3
    for world_size, num_steps in groups:
        for rank in range(world_size):
            slots = rank_slots(
                start_step=step,
                end_step=step + num_steps,
                micro_batches=micro_batches,
                rank=rank,
                world_size=world_size,
            )
            for position in slots.ravel().tolist():
                epoch, _, ids = plan.batch_at(position)
                real = ids[ids != PADDING]
                assert len({plan.bucket_of[i] for i in real}) <= 1
                assert len(ids) == plan.bucket(ids).batch_clips
                ledger.add(epoch, ids, {})
        step += num_steps
        ledger.position = step * micro_batches
        ledger.check(plan)
    by_source = np.array([plan.sample(i).source for i in range(plan.num_samples)])
    for source in range(count):
        own = set(np.flatnonzero(by_source[: plan.num_train] == f"source {source}").tolist())
        read = plan.schedule.counts(ledger.position)[source]
        whole_passes = read // plan.num_batches_per_pass[source]
        seen = Counter(i for epoch in ledger.epochs() for i in ledger.consumed[epoch] if i in own)
        assert all(seen[i] in (whole_passes, whole_passes + 1) for i in own)


def test_buckets_differ_in_clips_of_a_micro_batch_so_that_tokens_do_not():
    sizes = [{"clip_s": 0.5, "size": [64, 64]}, {"clip_s": 1.0, "size": [64, 128]}]
    cfg = run_config(buckets=sizes, batch_tokens=1000)
    made = {bucket.name: bucket for bucket in buckets_of(cfg)}
    assert made["1s-64x64-16fps"].batch_clips == 1000 // (24 + 4 * (1 + 16 + 16))
    assert made["0.5s-64x64-16fps"].batch_clips > made["1s-64x64-16fps"].batch_clips
    assert made["1s-64x128-16fps"].batch_clips < made["1s-64x64-16fps"].batch_clips
    assert made["1s-sound"].size == (16, 16)
    assert made["still-64x128"].clip_s == 0.25
    assert {bucket.batch_clips for bucket in buckets_of(run_config(buckets=sizes))} == {4}


def test_a_picture_goes_to_the_nearest_aspect_and_the_largest_size_that_it_fills():
    sizes = [(64, 64), (128, 128), (64, 128), (128, 64)]
    height, width = np.array([100, 130, 720, 1080, 64, 20]), np.array([100, 140, 1280, 600, 100, 20])
    assert [sizes[i] for i in nearest_size(height, width, sizes)] == [
        *((64, 64), (128, 128), (64, 128), (128, 64), (64, 128), (64, 64)),
    ]


def test_clips_go_to_the_longest_lengths_that_fit_and_every_kind_has_its_own_bucket(tmp_path):
    picture = {"has_video": True, "width": 640, "height": 360}
    rows = [
        {"uri": "five", "group": "a", "end_s": 4.8, "duration_s": 4.8, **picture},
        {"uri": "short", "group": "b", "end_s": 0.3, "duration_s": 0.3, **picture},
        {"uri": "sound", "group": "c", "end_s": 1.2, "duration_s": 1.2, "has_video": False, "fps": 0.0},
        {"uri": "image", "group": "d", "end_s": 0.0, "duration_s": 0.0, **picture},
    ]
    cfg = run_config(
        clip_s=2.0, buckets=[{"clip_s": 0.5, "size": [64, 64]}, {"clip_s": 2.0, "size": [64, 112]}]
    )
    plan = make_plan(write_manifest(tmp_path / "m.parquet", rows), cfg)
    found = [
        (s.uri, s.start_s, s.end_s, round(s.valid_s, 6), s.bucket)
        for s in map(plan.sample, range(plan.num_samples))
    ]
    assert found == [
        ("five", 0.0, 2.0, 2.0, "2s-64x112-16fps"),
        ("five", 2.0, 4.0, 2.0, "2s-64x112-16fps"),
        ("five", 4.0, 4.5, 0.5, "0.5s-64x64-16fps"),
        ("short", 0.0, 0.5, 0.3, "0.5s-64x64-16fps"),
        ("sound", 0.0, 0.5, 0.5, "0.5s-sound"),
        ("sound", 0.5, 1.0, 0.5, "0.5s-sound"),
        ("image", 0.0, 0.25, 0.25, "still-64x112"),
    ]
    assert all(a <= b for (_, _, a, *_), (_, b, *_) in pairwise(found[:3]))
    plan.save(tmp_path / "plan.parquet")
    loaded = Plan.load(tmp_path / "plan.parquet")
    assert (loaded.hash, loaded.buckets) == (plan.hash, plan.buckets)


def test_sources_are_mixed_by_weight_and_one_that_is_empty_is_an_error(tmp_path):
    rows = [{"uri": f"{i}", "group": f"{i}", "end_s": 1.0, "duration_s": 1.0} for i in range(40)]
    film, talk = (
        write_manifest(tmp_path / f"{n}.parquet", part) for n, part in (("f", rows[:30]), ("t", rows[30:]))
    )
    mixture = [
        {"name": "film", "manifest": "a", "weight": 1.0},
        {"name": "talk", "manifest": "b", "weight": 3.0},
    ]
    cfg = run_config(mixture=mixture, batch_clips=2)
    plan = make_plan({"film": film, "talk": talk}, cfg)
    read = [plan.batch_at(n) for n in range(40)]
    sources = Counter(plan.sample(int(ids[0])).source for _, _, ids in read)
    assert sources == {"film": 10, "talk": 30}
    assert max(epoch for epoch, _, _ in read) == 5  # five clips pairs a pass: the heavy source comes round
    assert {plan.sample(0).weight, plan.sample(39).weight} == {1.0, 3.0}
    none = write_manifest(tmp_path / "none.parquet", [])
    with pytest.raises(UserError, match="nothing to train on in talk"):
        make_plan({"film": film, "talk": none}, cfg)
