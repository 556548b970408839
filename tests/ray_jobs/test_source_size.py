"""What a dry run finds out about the clips of its sources: how many, how long, and what they hold."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from avtok.mux import write_clip
from ray_jobs.dry_run import describe, dry_run
from ray_jobs.errors import UserError
from ray_jobs.plan import make_plan
from ray_jobs.source_size import describe_data
from tests.ray_jobs.test_dry_run import config
from tests.ray_jobs.test_plan import write_manifest
from worldmodel.config import RunConfig
from worldmodel.worlds.bounce import BounceSettings, simulate

BUCKETS = [{"clip_s": 0.5, "size": [64, 64]}, {"clip_s": 1.0, "size": [32, 64]}]


@pytest.mark.parametrize("buckets", [[], BUCKETS], ids=["one bucket", "buckets"])
def test_clips_and_passes_are_counted_as_the_plan_cuts_them(
    manifest: Path, clip_folder: Path, cfg: RunConfig, buckets: list[Any]
):
    values = cfg.model_dump()
    values["data"] |= {"buckets": buckets, "batch_tokens": 2000 if buckets else None}
    values["data"] |= {"batch_clips": 1} if buckets else {}
    cfg = RunConfig.model_validate(values)
    plan = make_plan(str(manifest), cfg)
    found = describe_data(cfg).facts
    assert (found["known"], found["clips"]) == ("indexed", plan.num_samples)
    assert found["batches_per_epoch"] == plan.num_batches_per_epoch
    folder = cfg.model_copy(update={"data": cfg.data.model_copy(update={"manifest": str(clip_folder)})})
    assert (
        abs(describe_data(folder).facts["clips"] - plan.num_samples) <= 1
    )  # the silent one is only found later
    with pytest.raises(UserError, match="no such file or folder"):
        dry_run(cfg.model_copy(update={"data": cfg.data.model_copy(update={"manifest": "nowhere"})}))


@pytest.mark.parametrize("manifest", ["/mnt/clips", "/mnt/clips/{00..31}.tar", "/mnt/lerobot?camera=top"])
def test_clips_that_only_the_cluster_has_are_not_known(manifest: str):
    facts = dry_run(config(data={"manifest": manifest}))
    told = f"\ndata: {manifest} is not on this machine: its clips and epochs are not known\n"
    assert told in describe(facts)
    mixture = [{"name": "some", "manifest": manifest, "weight": 1}]
    assert describe_data(config(data={"mixture": mixture})).facts == facts["data"]


def test_a_mixture_is_held_out_of_as_the_plan_does(manifest: Path, clip_folder: Path, cfg: RunConfig):
    """A part of all sources together, not of each."""
    values = cfg.model_dump()
    names = [chr(ord("a") + number) for number in range(4)]
    mixture = [{"name": name, "manifest": str(manifest), "weight": 1} for name in names]
    values["data"] |= {"manifest": "", "mixture": mixture, "held_out": 0.1, "batch_clips": 1}
    cfg = RunConfig.model_validate(values)
    plan, found = make_plan(dict.fromkeys(names, str(manifest)), cfg), describe_data(cfg).facts
    assert found["batches_per_epoch"] == plan.num_batches_per_epoch
    assert (found["known"], found["clips"]) == ("4 sources", plan.num_samples)


def test_clips_that_are_elsewhere_are_counted_by_the_spans_of_their_list(tmp_path: Path, cfg: RunConfig):
    rows = [{"uri": f"/mnt/nowhere/{n}.mp4", "start_s": 0.0, "end_s": 3.0} for n in range(10)]
    (tmp_path / "clips.json").write_text(json.dumps(rows))
    data = cfg.data.model_copy(update={"manifest": str(tmp_path / "clips.json")})
    found = describe_data(cfg.model_copy(update={"data": data})).facts
    assert found["clips"] == 10 * round(3 / cfg.data.clip_s)
    assert found["hours"] == pytest.approx(30 / 3600)


def test_a_source_of_sound_alone_is_reckoned_without_pictures_and_refused_where_it_teaches_nothing(
    tmp_path: Path,
):
    def facts_of(row: dict[str, Any], *, workers: int = 1, **objective: float) -> dict[str, Any]:
        rows = [
            {"uri": f"file {n}", "group": str(n), "end_s": 2.0, "duration_s": 2.0} | row for n in range(9)
        ]
        manifest = write_manifest(tmp_path / "m.parquet", rows)
        train = {"device": "cpu", "workers": workers, "micro_batches": 1}
        return dry_run(
            config(
                data={"manifest": manifest, "batch_clips": 2, "size": (128, 128)},
                train=train,
                objective=objective,
            )
        )

    films, sounds = facts_of({}), facts_of({"has_video": False})
    assert sounds["tokens"]["parts"]["video"] < films["tokens"]["parts"]["video"]
    assert sounds["worker_bytes"]["total"] < films["worker_bytes"]["total"]
    assert "reckoned with its largest micro-batch: 2 clips of 2.0 s of sound alone" in describe(sounds)
    idle = facts_of({"has_video": False}, workers=2)  # an empty micro-batch has the first bucket's shape
    assert idle["worker_bytes"]["activations"] == films["worker_bytes"]["activations"]
    assert idle["tokens"] == sounds["tokens"]
    assert idle["train"]["flops_per_step"] == sounds["train"]["flops_per_step"]
    with pytest.raises(UserError, match="nothing to learn: all clips for training hold sound, and"):
        facts_of({"has_video": False}, picture_alone=1.0)


def write_sources(folder: Path, sounds: int, films: int = 0, silent: int = 0) -> Path:
    """Files of one second: films first, then silent ones, then sound alone."""
    folder.mkdir()
    episode = simulate(BounceSettings(), seed=0, duration_s=1.0)
    video, audio = episode.video_THWC, episode.audio_N
    contents = [(video, audio)] * films + [(video, None)] * silent + [(None, audio)] * sounds
    for n, (seen, heard) in enumerate(contents):
        write_clip(
            folder / f"{n:03}.{'m4a' if seen is None else 'mp4'}", seen, heard, fps=16, sample_rate=16000
        )
    return folder


def test_the_sound_of_another_file_is_looked_at(tmp_path: Path):
    folder = write_sources(tmp_path / "files", sounds=4, silent=4)
    lines = [f"{folder}/{n:03}.mp4,{folder}/{n + 4:03}.m4a\n" for n in range(4)]
    (tmp_path / "list.csv").write_text("video,audio\n" + "".join(lines))
    data, alone = {"manifest": str(tmp_path / "list.csv"), "clip_s": 1.0}, {"sound_alone": 1.0}
    assert dry_run(config(data=data, objective=alone))["warnings"] == []
    (folder / "004.m4a").unlink()  # a run leaves that film out
    assert dry_run(config(data=data, objective=alone))["data"]["clips"] == 3
    silent = write_sources(tmp_path / "silent", sounds=0, silent=2)
    with pytest.raises(UserError, match="nothing to learn"):
        dry_run(config(data=data | {"manifest": str(silent)}, objective=alone))


def test_what_was_not_looked_at_may_be_films(tmp_path: Path):
    """Every third of 129 files is opened."""
    folder = write_sources(tmp_path / "files", sounds=128)
    write_sources(tmp_path / "film", sounds=0, films=1)
    (tmp_path / "film" / "000.mp4").rename(folder / "001.mp4")
    found = dry_run(config(data={"manifest": str(folder), "clip_s": 1.0}))
    assert found["data"]["known"] == "from 43 of 129 files"
    assert (
        found["tokens"]["parts"]["video"] == dry_run(config(data={"clip_s": 1.0}))["tokens"]["parts"]["video"]
    )


def test_a_manifest_of_no_clips_is_refused(tmp_path: Path):
    manifest = write_manifest(tmp_path / "m.parquet", [])
    with pytest.raises(UserError, match=r"m\.parquet: holds no clips"):
        dry_run(config(data={"manifest": manifest}))


def test_clips_in_a_tar_are_counted(tmp_path: Path, clip_folder: Path, cfg: RunConfig):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in ("bounce_0.mp4", "bounce_1.mp4"):
            shard.add(clip_folder / name, name)
    data = cfg.data.model_copy(update={"manifest": str(tmp_path / "shard.tar")})
    assert describe_data(cfg.model_copy(update={"data": data})).facts["clips"] == 2 * round(
        2 / cfg.data.clip_s
    )
