"""Pools are as large as clips are dear, and a line says beforehand what would starve."""

from __future__ import annotations

import heapq
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from ray_jobs.blocks import check_latents
from ray_jobs.cluster import encoding_slots, fit_problem
from ray_jobs.dataset import PREFETCHED_ROWS, actor_dataset, iterate_rows, rank_stream
from ray_jobs.doctor import check_decoding
from ray_jobs.errors import UserError
from ray_jobs.pools import (
    MAX_STALL,
    ClipCost,
    demand,
    estimated_decode_s,
    measure_cost,
    num_actors,
    stall_fraction,
    starvation,
    with_sized_pool,
)
from ray_jobs.preflight import check_given
from ray_jobs.run_folder import RunFolder
from ray_jobs.tokenize import by_file, tokenize
from worldmodel.load_config import load_config


def waiting(costs_s: np.ndarray, actors: int, step_s: float, ahead: int) -> float:
    """Share of its time that a trainer waits which takes one micro-batch every step_s, made by actors that
    are at most `ahead` micro-batches in front of it and hand them on in order."""
    free_s, ready_s, taken_s, now_s, waited_s = [0.0] * actors, [], [], 0.0, 0.0
    for number, cost_s in enumerate(costs_s):
        begin_s = max(heapq.heappop(free_s), taken_s[number - ahead] if number >= ahead else 0.0)
        heapq.heappush(free_s, begin_s + cost_s)
        ready_s.append(max(begin_s + cost_s, ready_s[-1] if ready_s else 0.0))
        if number >= 50:
            waited_s += max(0.0, ready_s[-1] - now_s)
        now_s = max(now_s, ready_s[-1]) + step_s
        taken_s.append(now_s)
    return waited_s / (now_s - taken_s[49])


@pytest.mark.parametrize("clips_per_s", [0.5, 3.0, 40.0])
def test_a_pool_of_that_size_keeps_the_stall_under_two_percent_where_clips_differ(clips_per_s):
    cost, clips = ClipCost(0.2, 0.1), 8
    actors = num_actors(cost, clips_per_s, workers=1)
    spread = np.random.default_rng(0).lognormal(-0.125, 0.5, (4000, clips)).mean(1)
    costs_s = spread / spread.mean() * cost.actor_s * clips
    ahead = PREFETCHED_ROWS + 2 * actors
    assert waiting(costs_s, actors, clips / clips_per_s, ahead) <= MAX_STALL
    if too_few := int(0.9 * clips_per_s * cost.actor_s):
        assert waiting(costs_s, too_few, clips / clips_per_s, ahead) > MAX_STALL


def test_workers_share_the_clips_and_a_gpu_takes_an_actors_time_but_no_core():
    assert num_actors(ClipCost(0.5, 0.0), 17.0, workers=1) == 10
    assert num_actors(ClipCost(0.5, 0.0), 17.0, workers=5) == 2
    assert num_actors(ClipCost(0.25, 0.0, on_gpu_s=0.25), 17.0, workers=1) == 10
    assert num_actors(ClipCost(0.0, 0.0), 1000.0, workers=1) == 1
    assert stall_fraction(ClipCost(0.25, 0.0, on_gpu_s=0.25), 8.0, cores=1.0) == pytest.approx(0.5)


def test_one_line_says_what_starves_and_what_to_do():
    assert starvation(ClipCost(2.5, 0.25), 1.9, cores=2) == (
        "decoding needs 5.22 cores for 1.9 clips/s; 2 are free: training would wait 62% of the time; add "
        "CPUs, set data.cache and run `worldmodel tokenize` first, or lower data.fps"
    )
    assert starvation(ClipCost(0.25, 2.5), 1.9, cores=1).startswith("encoding needs 5.22 cores")
    assert starvation(ClipCost(0.5, 0.5), 1.9, cores=2) == ""


def test_demand_comes_from_steps_that_did_not_wait_else_from_arithmetic():
    cfg = load_config(
        None, ["data.batch_clips=4", "train.micro_batches=2", "train.device=cuda", "train.workers=2"]
    )
    rows = [{"step_s": 9.0, "stall_fraction": 0.0, "loss": 1.0}] * 3
    rows += [{"step_s": 2.0, "stall_fraction": 0.5, "loss": 1.0}, {"eval_video": 1.0, "step": 4}] * 3
    assert demand(cfg, rows=rows) == pytest.approx(8.0)
    assert demand(cfg, flops_per_step=800e12) == pytest.approx(8.0)
    assert demand(cfg) == 0.0


def test_cost_is_measured_on_clips_of_the_plan_and_cached_ones_cost_nothing(plan, cfg, tmp_path):
    cost = measure_cost(plan, cfg, clips=4)
    assert 0.0 < cost.encode_s < 5.0
    assert cost.on_gpu_s == 0.0
    larger = cfg.model_copy(update={"data": cfg.data.model_copy(update={"cache": str(tmp_path / "cache")})})
    from ray_jobs.stages import EncodeBatch

    for sample_id in range(plan.num_train):
        EncodeBatch(plan, larger).fill_cache(sample_id)
    assert measure_cost(plan, larger, clips=4) == ClipCost(0.0, 0.0)


def test_the_index_tells_what_decoding_costs_and_the_doctor_what_it_means(manifest, cfg, tmp_path):
    assert estimated_decode_s([str(manifest)], cfg) > 0
    dear = tmp_path / "dear.parquet"
    table = pa.table({"decode_cost_s": [1.5, 2.5], "start_s": [0.0, 0.0], "end_s": [9.0, 9.0]})
    pq.write_table(table, dear)
    assert estimated_decode_s([str(dear)], cfg) == pytest.approx(2.0 * cfg.data.clip_s)
    assert estimated_decode_s([str(tmp_path / "none")], cfg) == 0.0
    on_gpu = load_config(None, [f"data.manifest={dear}", "train.device=cuda", "train.workers=1"])
    (finding,) = check_decoding(on_gpu, 1, cores=3)
    assert not finding.ok
    assert "2 are free: training would wait" in finding.found
    assert "worldmodel tokenize" in finding.advice
    assert check_decoding(on_gpu, 0) == []


def test_gpus_for_encoding_are_counted_with_those_that_train():
    def problem(have, *options):
        return fit_problem(load_config(None, ["train.workers=2", *options]), have)

    cpus = {"CPU": 64.0}
    assert "the cluster has 0 GPUs; set data.encode_gpus=0" in problem(cpus, "data.encode_gpus=0.25")
    both = ("data.encode_gpus=0.25", "data.decode_actors=4", "train.device=cuda")
    assert "need 4, the cluster has 2; set data.encode_gpus=0" in problem(cpus | {"GPU": 2.0}, *both)
    assert problem(cpus | {"GPU": 4.0}, *both) == ""
    assert problem({"CPU": 3.0}, "data.decode_actors=0") == ""  # at least one actor each
    assert "too few CPUs" in problem({"CPU": 2.0}, "data.decode_actors=0")


def test_a_block_that_would_be_too_large_names_its_bucket(manifest):
    from avtok.load import codec_spec

    cfg = load_config(
        None,
        [
            f"data.manifest={manifest}",
            *("data.size=[512,512]", "data.clip_s=2", "data.batch_clips=48"),
        ],
    )
    with pytest.raises(
        UserError, match=r"bucket 2s-512x512-16fps: .* 144\.\d MiB, .* 32 MiB; set data\.batch_clips=10"
    ):
        check_latents(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    with pytest.raises(UserError, match="bucket 2s-512x512-16fps"):
        check_given(cfg)


def test_cuts_of_one_file_follow_each_other_in_one_task(plan):
    ids, starts = by_file(plan)
    assert sorted(ids.tolist()) == list(range(plan.num_samples))
    tasks = [[plan.sample(i) for i in task] for task in np.split(ids, starts[1:])]
    assert all(len({sample.uri for sample in task}) == 1 for task in tasks)
    assert [[s.start_s for s in task] for task in tasks if "bounce" in task[0].uri] == [[0.0, 1.0]] * 5
    assert len({task[0].uri for task in tasks}) == len(tasks)


class WhereAmI:
    """Says which share of which GPU Ray gave it, and touches none."""

    def __call__(self, row):
        context = ray.get_runtime_context()
        assigned = context.get_assigned_resources()
        return {
            "at": int(row["at"]),
            "gpu": float(assigned.get("GPU", 0.0)),
            "ids": ",".join(context.get_accelerator_ids()["GPU"]),
        }


@pytest.mark.ray
def test_actors_share_a_gpu_and_blocks_are_one_micro_batch_of_fixed_shapes(plan, cfg, tmp_path):
    ray.init(
        num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20
    )
    try:
        quarter = cfg.model_copy(update={"data": cfg.data.model_copy(update={"encode_gpus": 0.25})})
        assert encoding_slots(quarter) == min(4, encoding_slots(cfg))
        rows = list(iterate_rows(actor_dataset("at", np.arange(16), WhereAmI, {}, 4, num_gpus=0.25)))
        assert [row["at"] for row in rows] == list(range(16))
        assert {(row["gpu"], row["ids"]) for row in rows} == {(0.25, "0")}
        with pytest.raises(ray.exceptions.RayError, match=r"sees no CUDA GPU; set data\.encode_gpus=0"):
            next(rank_stream(plan, quarter, start_step=0, end_step=1, rank=0, world_size=1))

        from ray_jobs.dataset import EncodeBatchActor

        arguments = {"plan_ref": ray.put(plan), "cfg": cfg}
        positions = np.arange(plan.num_batches_per_epoch)
        stream = actor_dataset("global_index", positions, EncodeBatchActor, arguments, 1).materialize()
        tables = [ray.get(ref) for bundle in stream.iter_internal_ref_bundles() for ref in bundle.block_refs]
        assert [table.num_rows for table in tables] == [1] * len(positions)
        assert len({str(table.schema.field("video").type) for table in tables}) > 1  # several buckets
        for table in tables:
            kinds = {field.name: str(field.type) for field in table.schema}
            for name in ("video", "audio", "video_valid", "text", "actions", "sample_ids"):
                assert kinds[name].startswith("ArrowTensorTypeV2(shape="), kinds[name]
            assert not [name for name, kind in kinds.items() if "PythonObject" in kind]
    finally:
        ray.shutdown()


@pytest.mark.ray
def test_tokenize_skips_what_is_there_without_opening_it_and_tells_its_bytes(
    ray_cluster, broken_plan, cfg, tmp_path
):
    cached = cfg.model_copy(update={"data": cfg.data.model_copy(update={"cache": str(tmp_path / "cache")})})
    first = tokenize(cached, broken_plan)
    files = list((tmp_path / "cache").rglob("*.safetensors"))
    assert first["bytes"] == sum(file.stat().st_size for file in files) > 0
    assert first["actors"] >= 1
    assert first["clips_per_s"] > 0
    for file in files:
        file.write_bytes(b"")  # would have to be encoded anew, were it read
    again = tokenize(cached, broken_plan)
    assert (again["encoded"], again["cached"], again["bytes"]) == (0, len(files), 0)


@pytest.mark.ray
def test_a_pool_of_zero_actors_is_measured_and_a_number_stays(ray_cluster, plan, cfg, tmp_path, caplog):
    small = load_config(
        None,
        [
            *(f"storage={tmp_path}", "name=sized", f"data.manifest={cfg.data.manifest}", "data.clip_s=1.0"),
            *("data.decode_actors=0", "train.workers=1", "model.depth=1", "model.width=48"),
            *("model.head_dim=48", "train.device=cpu", "rollout.prefix_s=0.5"),
        ],
    )
    folder = RunFolder(small)
    folder.make()
    slow, fast = ([{"loss": 1.0, "step_s": step_s, "stall_fraction": 0.0}] * 8 for step_s in (60.0, 1e-4))
    sizes = []
    for rows in (slow, fast):
        folder.metrics.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        caplog.clear()
        sizes.append(with_sized_pool(plan, small, folder).data.decode_actors)
    assert sizes == [1, 14]  # as many as eight CPUs hold beside training
    assert "training would wait" in caplog.text
    given = small.model_copy(update={"data": small.data.model_copy(update={"decode_actors": 3})})
    assert with_sized_pool(plan, given, folder) is given
