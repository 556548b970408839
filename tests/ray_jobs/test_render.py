"""Rendering as Ray tasks: real .mp4 clips that show and sound the truth beside them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from avtok.decode import decode_clip
from ray_jobs.errors import UserError
from ray_jobs.render import clip_seed, render, render_clip
from worldmodel.worlds.bounce import BounceSettings, read_truth, simulate


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[tuple[int, int]]]]:
    root = Path(__file__).parents[2]
    import_path = {"PYTHONPATH": f"{root}:{root / 'tokenizers'}"}
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": import_path})
    folders: dict[str, tuple[Path, list[tuple[int, int]]]] = {}
    for name in ("first", "again"):
        out, told = tmp_path_factory.mktemp(name), []
        manifest = render(
            "bounce_one",
            clips=10,
            out=str(out),
            seed=4,
            duration_s=1.0,
            progress=lambda done, clips, told=told: told.append((done, clips)),
        )
        assert manifest == str(out / "manifest.jsonl")
        folders[name] = (out, told)
    if started_here:
        ray.shutdown()
    return folders


@pytest.mark.ray
def test_clips_truth_and_manifest_lie_side_by_side(rendered):
    out, told = rendered["first"]
    names = [f"clip_{index:05d}.mp4" for index in range(10)]
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    truths = read_truth(out / "truth.parquet")
    assert [row["video"] for row in rows] == [truth.clip for truth in truths] == names
    assert [row["caption"] for row in rows] == [truth.caption for truth in truths]
    assert all((out / name).is_file() for name in names)
    assert told[-1] == (10, 10)


@pytest.mark.ray
def test_same_seed_gives_the_same_bytes(rendered):
    (first, _), (again, _) = rendered["first"], rendered["again"]
    clips = [path.name for path in first.glob("*.mp4")]
    assert len(clips) == 10
    # Plans are made from the bytes of clips, and libx264's lookahead read memory that nobody wrote.
    for name in ("truth.parquet", "manifest.jsonl", *clips):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_a_rendered_clip_decodes_to_what_was_simulated(tmp_path: Path):
    truth = render_clip("bounce_one", 3, out=str(tmp_path), seed=4, duration_s=2.0)
    episode = simulate(BounceSettings(), seed=clip_seed(4, 3), duration_s=2.0)
    clip = decode_clip(
        str(tmp_path / truth.clip), start_s=0.0, end_s=2.0, fps=16, size=(64, 64), sample_rate=16000
    )
    assert clip.video_THWC is not None
    assert clip.audio_N is not None
    assert clip.video_THWC.shape == episode.video_THWC.shape
    error = clip.video_THWC.astype(float) - episode.video_THWC
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 30
    heard, played = clip.audio_N[: len(episode.audio_N)], episode.audio_N
    assert np.corrcoef(heard, played)[0, 1] > 0.98


def test_a_clip_does_not_depend_on_how_many_are_rendered():
    assert len({clip_seed(seed, index) for seed in range(20) for index in range(50)}) == 1000
    assert clip_seed(4, 3) == clip_seed(4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": "bounce_two"}, "no world is named 'bounce_two'; there is bounce_one"),
        ({"clips": 0}, "--clips must be at least 1, got 0"),
        ({"duration_s": 0.01}, "use more seconds"),
    ],
)
def test_what_cannot_be_rendered_is_refused_before_ray_is_needed(tmp_path: Path, change: dict, message: str):
    arguments = {"world": "bounce_one", "clips": 1, "duration_s": 1.0, **change}
    with pytest.raises(UserError, match=message):
        render(arguments.pop("world"), out=str(tmp_path), seed=0, **arguments)


def test_a_folder_with_other_clips_is_refused(tmp_path: Path):
    (tmp_path / "clip_00009.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 1 other clips, such as clip_00009\.mp4"):
        render("bounce_one", clips=2, out=str(tmp_path), seed=0, duration_s=1.0)


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_to_the_command_alone_ends_it_as_ctrl_c_does_and_its_cluster_with_it(tmp_path):
    root, out = Path(__file__).parents[2], tmp_path / "clips"
    paths = os.pathsep.join(str(folder) for folder in (root, root / "tokenizers"))
    command = [sys.executable, "-m", "ray_jobs.cli", "render", "bounce_one", "--out", str(out), "--clips"]
    process = subprocess.Popen(
        [*command, "100000"],
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not list(out.glob("*.mp4")):
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in children)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "SIGTERM" not in said  # Ray's own words for it
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left
