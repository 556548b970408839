"""Real media of every kind that the data plane meets, made once a session."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from avtok.mux import write_clip
from ray_jobs.index import index_sources
from ray_jobs.plan import Plan, make_plan
from worldmodel.config import RunConfig
from worldmodel.worlds.bounce import BounceSettings, simulate

GOOD = tuple(f"bounce_{i}.mp4" for i in range(5))
CLIP_S = 1.0


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five bounces of 2 s (two clips each), one without sound, one muted, a sound, a short, two broken."""
    folder = tmp_path_factory.mktemp("clips")
    episodes = [simulate(BounceSettings(), seed=seed, duration_s=2.0) for seed in range(len(GOOD))]
    for name, episode in zip(GOOD, episodes, strict=True):
        write_clip(folder / name, episode.video_THWC, episode.audio_N, fps=16, sample_rate=16000)
        (folder / name).with_suffix(".txt").write_text(episode.truth.caption, "utf-8")
    video_THWC, audio_N = episodes[0].video_THWC, episodes[0].audio_N
    write_clip(folder / "no_sound.mp4", video_THWC[::-1], None, fps=16, sample_rate=16000)
    noise_N = 0.1 * np.random.default_rng(0).standard_normal(len(audio_N)).astype(np.float32)
    write_clip(folder / "no_picture.mp4", None, noise_N, fps=16, sample_rate=16000)
    write_clip(folder / "short.mp4", video_THWC[:10], audio_N[:10000], fps=16, sample_rate=16000)
    write_clip(folder / "muted.mp4", video_THWC[::-2], 0 * audio_N[:16000], fps=16, sample_rate=16000)
    (folder / "broken.mp4").write_bytes(b"this is no film" * 99)
    (folder / "empty.mp4").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def manifest(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manifest") / "manifest.parquet"
    index_sources([str(clip_folder)], out=str(out))
    return out


@pytest.fixture(scope="session")
def media() -> Path:
    """The real clips."""
    repo = Path(__file__).parents[2]
    folder = Path(os.environ.get("WORLDMODEL_MEDIA", repo.parent / "shared" / "media"))
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}; set WORLDMODEL_MEDIA")
    return folder


@pytest.fixture
def cfg(manifest: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"manifest": str(manifest), "clip_s": CLIP_S, "batch_clips": 4, "held_out": 0.0},
            "train": {"micro_batches": 2},
            "rollout": {"prefix_s": 0.5},
        }
    )


@pytest.fixture
def plan(manifest: Path, cfg: RunConfig) -> Plan:
    return make_plan(str(manifest), cfg)


@pytest.fixture
def broken_plan(clip_folder: Path, tmp_path: Path, cfg: RunConfig) -> Plan:
    """A plan of which one file was good when it was indexed and is broken now."""
    breaks = tmp_path / "breaks.mp4"
    breaks.write_bytes((clip_folder / GOOD[1]).read_bytes())
    lines = [
        json.dumps({"video": str(path)}) for path in (clip_folder / GOOD[0], breaks, clip_folder / GOOD[2])
    ]
    source = tmp_path / "clips.jsonl"
    source.write_text("\n".join(lines), "utf-8")
    index_sources([str(source)], out=str(tmp_path / "manifest.parquet"))
    plan = make_plan(str(tmp_path / "manifest.parquet"), cfg)
    breaks.write_bytes(b"now it is broken")
    return plan


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    yield
    ray.shutdown()
