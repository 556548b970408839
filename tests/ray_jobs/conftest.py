"""Real media of every kind that the data plane meets, made once a session."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from avtok.mux import write_clip
from ray_jobs.index import index_sources
from ray_jobs.plan import Plan, make_plan
from tests.ray_jobs.label_models import save_wav2vec2
from tests.ray_jobs.local_s3 import LocalS3, s3_server, s3_variables
from tests.ray_jobs.two_nodes import TOKEN, TwoNodes, answers, free_port, ray_start, until
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


@pytest.fixture(scope="session")
def tone_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a CTC model that reads the tones of `label_models.tone_speech`: seconds of training."""
    pytest.importorskip("transformers", reason="needs the extra worldmodel[pretrained]")
    return save_wav2vec2(tmp_path_factory.mktemp("models") / "tones", train_steps=75)


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


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    """`ray start` of a head and a node, with a token; stopped by their own process ids."""
    # short, and not pytest's: the paths of sockets end at 107 characters
    with tempfile.TemporaryDirectory(prefix="wm-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "token").write_text(TOKEN)
        gcs, dashboard = free_port(), free_port()
        head = ["--head", f"--port={gcs}", f"--ray-client-server-port={free_port()}"]
        head += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        node = [f"--address=127.0.0.1:{gcs}"]
        # A folder for each: in a shared one the second node unpacks the job's package anew, and a process
        # of the first that works in it has no folder any more.
        head, node = ([*args, f"--temp-dir={folder}/{name}"] for args, name in ((head, "0"), (node, "1")))
        with ray_start(head, folder, "head"), ray_start(node, folder, "node"):
            until(lambda: answers(dashboard), "the dashboard", folder)
            yield TwoNodes(f"http://127.0.0.1:{dashboard}", folder)


@pytest.fixture
def with_token(two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> TwoNodes:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(two_nodes.folder / "token"))
    return two_nodes


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(s3_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalS3:
    """An empty bucket, credentials in the environment, and a spool of the test's own."""
    for name, value in s3_variables(s3_address).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("WORLDMODEL_SPOOL", str(tmp_path / "spool"))
    return LocalS3(s3_address)
