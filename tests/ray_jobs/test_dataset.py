import os
import time

import pyarrow.parquet as pq
import pytest
import ray
import torch

from ray_jobs.accounting import Ledger
from ray_jobs.dataset import local_stream, rank_stream
from ray_jobs.errors import JobError, UserError
from ray_jobs.index import index_sources, probe_in_tasks
from ray_jobs.plan import PADDING
from ray_jobs.sources import SourceRow
from ray_jobs.tokenize import tokenize


def with_cache(cfg, folder):
    return cfg.model_copy(update={"data": cfg.data.model_copy(update={"cache": str(folder)})})


def clips_of(steps):
    """(step, epoch, sample id) -> that clip's tensors, of every rank's stream."""
    clips = {}
    for number, step in enumerate(steps):
        for batch in step:
            for i, sample_id in enumerate(batch.sample_ids_B.tolist()):
                if sample_id != PADDING:
                    key = (number, batch.epoch, sample_id)
                    assert key not in clips
                    clips[key] = (batch.video.latents[i], batch.audio.latents[i], batch.text_BN[i])
    return clips


def assert_same_clips(left, right):
    assert left.keys() == right.keys()
    for key, tensors in left.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, right[key], strict=True)), key


def test_a_step_has_the_same_samples_and_contents_at_any_world_size(plan, cfg):
    span = {"start_step": 1, "end_step": 4}  # crosses into the second epoch
    one = list(local_stream(plan, cfg, **span))
    assert [len(step) for step in one] == [2, 2, 2]
    alone = clips_of(one)
    assert len({epoch for _, epoch, _ in alone}) == 2
    for world_size in (2, 3):
        merged = {}
        for rank in range(world_size):
            steps = list(local_stream(plan, cfg, **span, rank=rank, world_size=world_size))
            assert [len(step) for step in steps] == [1, 1, 1]
            clips = clips_of(steps)
            assert not merged.keys() & clips.keys()
            merged |= clips
            if rank == 2:  # two micro-batches, three ranks: the third runs empty ones
                assert not clips
                assert steps[0][0].sample_ids_B.tolist() == [PADDING] * 4
        assert_same_clips(merged, alone)


def test_a_resumed_stream_goes_on_with_the_next_unseen_sample(plan, cfg):
    whole = list(local_stream(plan, cfg, start_step=0, end_step=3))
    resumed = list(local_stream(plan, cfg, start_step=2, end_step=3))
    assert_same_clips(clips_of(resumed), clips_of(whole[2:]))


def test_the_stream_of_a_broken_file_closes_the_books(broken_plan, cfg):
    ledger = Ledger(broken_plan.hash)
    steps = -(-broken_plan.num_batches_per_epoch // cfg.train.micro_batches)
    for step in local_stream(broken_plan, cfg, start_step=0, end_step=steps):
        for batch in step:
            ledger.add(batch.epoch, batch.sample_ids_B.tolist(), batch.reasons)
    ledger.position = steps * cfg.train.micro_batches
    ledger.check(broken_plan)
    counts = ledger.accounting_dict(broken_plan)
    assert (counts["planned"], counts["consumed"], counts["remaining"]) == (6, 4, 0)
    assert [bad["sample_id"] for bad in counts["quarantined"]] == [2, 3]


def test_tokenize_without_a_cache_folder_is_a_user_error(plan, cfg):
    with pytest.raises(UserError, match=r"data\.cache is empty"):
        tokenize(cfg, plan)


@pytest.mark.ray
def test_ranks_on_ray_read_what_a_bare_loop_reads_and_give_their_cpus_back(ray_cluster, plan, cfg):
    span = {"start_step": 0, "end_step": 3}
    local = clips_of(local_stream(plan, cfg, **span))
    merged = {}
    streams = [rank_stream(plan, cfg, **span, rank=rank, world_size=2) for rank in range(2)]
    for rank, stream in enumerate(streams):
        steps = list(stream)
        assert [len(step) for step in steps] == [1, 1, 1], rank
        merged |= clips_of(steps)
    assert_same_clips(merged, local)

    endless = rank_stream(plan, cfg, start_step=0, end_step=10_000, rank=0, world_size=1)
    next(endless)
    endless.close()
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 8 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 8


@pytest.mark.ray
def test_tokenize_fills_the_cache_once_and_the_stream_then_needs_no_media(
    ray_cluster, broken_plan, tmp_path, cfg
):
    cached = with_cache(cfg, tmp_path / "cache")
    seen = []
    counts = tokenize(cached, broken_plan, lambda done, total: seen.append((done, total)))
    assert (counts["planned"], counts["encoded"], counts["cached"]) == (6, 4, 0)
    assert [bad["sample_id"] for bad in counts["quarantined"]] == [2, 3]
    assert seen == [(i, 6) for i in range(1, 7)]
    again = tokenize(cached, broken_plan)
    assert (again["encoded"], again["cached"]) == (0, 4)
    span = {"start_step": 0, "end_step": 1}
    from_cache = clips_of(local_stream(broken_plan, cached, **span))
    assert_same_clips(from_cache, clips_of(local_stream(broken_plan, cfg, **span)))

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(JobError, match="cannot write the latent cache"):
        tokenize(with_cache(cfg, tmp_path / "file"), broken_plan)


def die_on_bomb(row):
    if "bomb" in row.uri:
        os._exit(139)
    return {"uri": row.uri}


@pytest.mark.ray
def test_probes_on_ray_give_the_same_manifest_and_a_file_that_kills_its_worker_is_one_row(
    ray_cluster, clip_folder, manifest, tmp_path
):
    result = index_sources([str(clip_folder)], out=str(tmp_path / "m.parquet"))
    assert pq.read_table(result.manifest).equals(pq.read_table(manifest))
    rows = [SourceRow(uri=f"{name}.mp4") for name in ("a", "b", "bomb", "c")]
    probed = dict(probe_in_tasks(rows, die_on_bomb))
    assert [probed[i].get("reason", "") for i in range(4)] == ["", "", "the decoder crashed on this file", ""]
