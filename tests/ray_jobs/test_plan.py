import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import UserError
from ray_jobs.index import MANIFEST_SCHEMA, index_sources
from ray_jobs.plan import PADDING, Plan, make_plan, rank_slots
from tests.ray_jobs.tiny_plans import tiny_plan
from worldmodel.config import RunConfig


def write_manifest(path, rows):
    defaults = {
        field.name: {"string": "", "bool": True}.get(
            str(field.type), 64 if str(field.type) == "int32" else 0.0
        )
        for field in MANIFEST_SCHEMA
    }
    pq.write_table(
        MANIFEST_SCHEMA.empty_table().from_pylist([defaults | row for row in rows], schema=MANIFEST_SCHEMA),
        path,
    )
    return str(path)


def with_data(**data):
    return RunConfig.model_validate(
        {"data": {"clip_s": 1.0, "held_out": 0.0} | data, "rollout": {"prefix_s": 0.5}}
    )


def test_media_is_cut_into_whole_clips_and_a_short_file_is_one_with_an_invalid_tail(tmp_path):
    rows = [
        {"uri": "long", "group": "a", "start_s": 0.5, "end_s": 3.9, "duration_s": 3.9, "caption": "a ball"},
        {"uri": "short", "group": "b", "end_s": 0.6, "duration_s": 0.6, "transcript": "hello"},
        {"uri": "rounded", "group": "c", "end_s": 1.99, "duration_s": 1.99},
        {"uri": "image", "group": "d", "end_s": 0.0, "duration_s": 0.0},
    ]
    plan = make_plan(write_manifest(tmp_path / "m.parquet", rows), with_data())
    cuts = [
        (s.uri, s.start_s, s.end_s, round(s.valid_s, 6)) for s in map(plan.sample, range(plan.num_samples))
    ]
    assert cuts == [
        ("long", 0.5, 1.5, 1.0),
        ("long", 1.5, 2.5, 1.0),
        ("long", 2.5, 3.5, 1.0),
        ("short", 0.0, 1.0, 0.6),
        ("rounded", 0.0, 1.0, 1.0),
        ("rounded", 1.0, 2.0, 0.99),
        ("image", 0.0, 0.25, 0.25),
    ]
    assert plan.sample(0).text == "a ball"
    assert plan.sample(3).text == "hello"


@given(
    seconds=st.lists(st.floats(1.0, 30.0), min_size=20, max_size=60),
    lengths=st.sets(st.sampled_from([0.5, 1.5, 2.0]), min_size=1),
)
def test_lengths_leave_nothing_that_packing_could_save(seconds, lengths):
    """See docs/decisions/009-lengths-instead-of-packing.md."""
    lengths = sorted({1.0, *lengths})
    buckets = [{"clip_s": length, "size": [64, 64]} for length in lengths[:-1]]
    cfg = with_data(clip_s=lengths[-1], buckets=buckets, batch_tokens=8000)
    rows = [
        {"uri": str(n), "group": str(n), "end_s": s, "duration_s": s, "has_video": True, "has_audio": True}
        for n, s in enumerate(seconds)
    ]
    with TemporaryDirectory() as folder:
        plan = make_plan(write_manifest(Path(folder) / "m.parquet", rows), cfg)
    samples = list(map(plan.sample, range(plan.num_samples)))
    trained, valid = sum(s.end_s - s.start_s for s in samples), sum(s.valid_s for s in samples)
    slack = len(samples) / 16  # a frame that a container may have rounded away
    assert trained - valid <= slack
    assert sum(seconds) - valid <= lengths[0] * len(seconds)  # less than the shortest length of each


def test_each_cut_carries_the_words_that_begin_in_it(tmp_path):
    cues = [
        {"start": 0.1, "end": 0.5, "text": "bin blue"},
        {"start": 0.9, "end": 1.4, "text": "at f"},
        {"start": 1.6, "end": 1.9, "text": "two now"},
    ]
    common = {"end_s": 2.0, "duration_s": 2.0}
    rows = [
        {"uri": "timed", "group": "a", "speech_json": json.dumps(cues), "transcript": "bin", **common},
        {"uri": "untimed", "group": "b", "transcript": "bin blue at f", "caption": "a man", **common},
        {"uri": "mute", "group": "c", "speech_json": json.dumps([{"text": "hm"}]), **common},
    ]
    plan = make_plan(write_manifest(tmp_path / "m.parquet", rows), with_data())
    samples = [plan.sample(i) for i in range(plan.num_samples)]
    assert [s.transcript for s in samples] == [
        *("bin blue at f", "two now"),
        *("bin blue at f", "bin blue at f"),
        *("hm", "hm"),
    ]
    assert [s.caption for s in samples] == ["", "", "a man", "a man", "", ""]
    assert [s.text for s in samples[:3]] == ["bin blue at f", "two now", "a man"]


def test_each_cut_carries_the_actions_of_its_own_frames(tmp_path):
    actions = str([[float(frame)] for frame in range(40)])
    rows = [{"uri": "a", "group": "a", "end_s": 2.5, "duration_s": 2.5, "actions": actions}]
    manifest = write_manifest(tmp_path / "m.parquet", rows)
    plan = make_plan(manifest, with_data())
    assert plan.sample(0).actions == str([[float(frame)] for frame in range(16)])
    assert plan.sample(1).actions == str([[float(frame)] for frame in range(16, 32)])
    narrow = with_data().model_copy(update={"model": with_data().model.model_copy(update={"action_dim": 1})})
    make_plan(manifest, narrow)
    rows[0]["actions"] = "[[1.0, 2.0, 3.0, 4.0, 5.0]]"
    with pytest.raises(UserError, match=r"model\.action_dim is 4"):
        make_plan(write_manifest(tmp_path / "m.parquet", rows), with_data())


def test_no_group_stands_on_both_sides_and_adding_files_moves_no_other(tmp_path):
    rows = [
        {"uri": f"{i}-{part}", "group": f"film {i}", "end_s": 2.0, "duration_s": 2.0}
        for i in range(40)
        for part in "ab"
    ]

    def sides(rows):
        plan = make_plan(write_manifest(tmp_path / "m.parquet", rows), with_data(held_out=0.25))
        samples = [plan.sample(i) for i in range(plan.num_samples)]
        assert [s.sample_id for s in samples] == list(range(len(samples)))
        assert [s.split == "train" for s in samples] == [i < plan.num_train for i in range(len(samples))]
        return {s.group: s.split for s in samples}, {(s.group, s.split) for s in samples}

    some, all_rows = sides(rows[:40]), sides(rows)
    assert len(all_rows[0]) == len(all_rows[1]) == 40
    assert 2 <= list(all_rows[0].values()).count("held_out") <= 20
    assert some[0].items() <= all_rows[0].items()


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_sides_have_a_file_when_there_are_two(tmp_path, fraction):
    rows = [{"uri": g, "group": g, "end_s": 1.0, "duration_s": 1.0} for g in "ab"]
    plan = make_plan(write_manifest(tmp_path / "m.parquet", rows), with_data(held_out=fraction))
    assert (plan.num_train, len(plan.held_out_ids)) == (1, 1)


def test_plan_survives_its_file_and_a_changed_file_is_refused(tmp_path, plan):
    path = tmp_path / "plan.parquet"
    plan.save(path)
    loaded = Plan.load(path)
    assert loaded.hash == plan.hash
    assert loaded.table.equals(plan.table)
    assert loaded.batch_at(7)[:2] == plan.batch_at(7)[:2]
    assert np.array_equal(loaded.batch_at(7)[2], plan.batch_at(7)[2])
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(UserError, match="make it anew"):
        Plan.load(path)
    with pytest.raises(UserError, match="not a plan"):
        Plan.load(tmp_path / "gone.parquet")


def test_hash_follows_content_seed_and_batch_but_not_the_folder(plan):
    def changed(name, values):
        return plan.table.set_column(plan.table.column_names.index(name), name, [values])

    count, bucket = plan.num_samples, plan.buckets[0]
    assert replace(plan, table=changed("uri", ["elsewhere"] * count)).hash == plan.hash
    assert (
        replace(plan, table=pa.concat_tables([plan.table.slice(0, 3), plan.table.slice(3)])).hash == plan.hash
    )
    assert replace(plan, seed=plan.seed + 1).hash != plan.hash
    larger = replace(bucket, batch_clips=bucket.batch_clips + 1)
    assert replace(plan, buckets=(larger, *plan.buckets[1:])).hash != plan.hash
    assert replace(plan, table=changed("start_s", [9.0] * count)).hash != plan.hash
    assert replace(plan, table=changed("caption", ["another"] * count)).hash != plan.hash


def test_manifest_without_probes_and_a_plan_without_training_clips_are_user_errors(tmp_path, clip_folder):
    write_manifest(tmp_path / "none.parquet", [])
    with pytest.raises(UserError, match="nothing to train on"):
        make_plan(str(tmp_path / "none.parquet"), with_data())
    pq.write_table(pq.read_table(tmp_path / "none.parquet").select(["uri"]), tmp_path / "raw.parquet")
    with pytest.raises(UserError, match="lacks the columns"):
        make_plan(str(tmp_path / "raw.parquet"), with_data())
    with pytest.raises(UserError, match="worldmodel index"):
        make_plan(str(clip_folder / "bounce_0.mp4"), with_data())


def test_two_cuts_of_one_file_share_a_group_whatever_its_name(tmp_path, clip_folder):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes((clip_folder / "bounce_0.mp4").read_bytes())
    index_sources([str(clip_folder / "bounce_0.mp4"), str(copy)], out=str(tmp_path / "m.parquet"))
    plan = make_plan(str(tmp_path / "m.parquet"), with_data(held_out=0.5))
    assert len({plan.sample(i).group for i in range(plan.num_samples)}) == 1
    assert (plan.num_samples, plan.num_train) == (4, 4)


@given(
    bucket_sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    batch_clips=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_holds_each_train_sample_once_in_batches_of_one_bucket(
    bucket_sizes, batch_clips, seed, epoch
):
    plan = tiny_plan(bucket_sizes, batch_clips=batch_clips, seed=seed)
    one = plan.pass_of(0, epoch)
    batches = [one.batch(b) for b in range(len(one))]
    assert len(batches) == plan.num_batches_per_epoch
    assert all(len(batch) == batch_clips and (batch != PADDING).any() for batch in batches)
    ids = np.concatenate(batches)
    assert sorted(ids[ids != PADDING]) == list(range(sum(bucket_sizes)))
    for batch in batches:
        assert len({plan.sample(int(i)).bucket for i in batch if i != PADDING}) == 1


def test_order_depends_on_seed_and_epoch_alone_and_never_changes():
    plan = tiny_plan([7], seed=5)
    assert [plan.pass_of(0, e).batch(b).tolist() for e in (0, 1) for b in range(3)] == [
        [2, 4, 3],
        [1, 5, 0],
        [6, -1, -1],
        [4, 5, 1],
        [6, 0, 2],
        [3, -1, -1],
    ]
    again = tiny_plan([7], seed=5)
    assert np.array_equal(
        again.pass_of(0, 1).batch(2), plan.pass_of(0, 1).batch(2)
    )  # asked for without epoch 0
    assert not np.array_equal(tiny_plan([7], seed=6).pass_of(0, 0).batch(0), plan.pass_of(0, 0).batch(0))


@given(
    bucket_sizes=st.lists(st.integers(1, 12), min_size=1, max_size=2),
    micro_batches=st.integers(1, 6),
    world_size=st.integers(1, 5),
    start_step=st.integers(0, 20),
    num_steps=st.integers(1, 5),
)
def test_any_world_size_reads_exactly_the_planned_batches_of_each_step(
    bucket_sizes, micro_batches, world_size, start_step, num_steps
):
    plan = tiny_plan(bucket_sizes)
    ranks = [
        rank_slots(
            start_step=start_step,
            end_step=start_step + num_steps,
            micro_batches=micro_batches,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    assert {slots.shape for slots in ranks} == {(num_steps, -(-micro_batches // world_size))}
    for step in range(num_steps):
        real = sorted(int(g) for slots in ranks for g in slots[step] if g >= 0)
        first = (start_step + step) * micro_batches
        assert real == list(range(first, first + micro_batches))  # none lost, none doubled
    position = (start_step + num_steps) * micro_batches
    read: dict[int, list[int]] = {}
    for global_index in range(position):
        epoch, _, ids = plan.batch_at(global_index)
        read.setdefault(epoch, []).extend(ids[ids != PADDING].tolist())
    assert {e: sorted(ids) for e, ids in read.items()} == {
        e: ids.tolist() for e, ids in plan.sample_ids_before(position).items()
    }
