"""One seed, four ways to ask: Python, the command, the API, and a Ray actor; are latents and frames the same?

Each answers with the SHA-256 of latents and frames before muxing. Each shipped model makes a clip from words
alone, and one that goes on with a given clip.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import ray

from ray_jobs import serve
from ray_jobs.bench import Measured
from ray_jobs.cluster import connect
from ray_jobs.models import find_model
from worldmodel.model_folder import shipped_models
from worldmodel.pipeline import WorldModelPipeline
from worldmodel.worlds.catalog import make_episode, world_settings

PROMPTS = {"talker": 'a man says "bin blue at f two now"'}
PROMPT, SEED, FRAMES, SMOKE_FRAMES = "a red steel ball, moving left", 11, 64, 8


def run(smoke: bool) -> Measured:
    models = shipped_models()[:1] if smoke else shipped_models()
    raw: dict[str, dict[str, str]] = {}
    connect()  # one cluster for all: Serve does not come up again in a process that had another
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-same-seed-") as folder:
        for name in models:
            given = Path(folder) / f"{name}.mp4"
            _begin(name, given)
            frames = SMOKE_FRAMES if smoke else FRAMES
            for case, video in (("words", None), ("beginning", given)):
                asked = {"prompt": PROMPTS.get(name, PROMPT), "frames": frames, "video": video}
                raw[f"{name}, {case}"] = {
                    "python": _python(name, asked),
                    "command": _command(name, asked, Path(folder)),
                }
            for case, found in zip(("words", "beginning"), _served(name, frames, given), strict=True):
                raw[f"{name}, {case}"] |= found
    ray.shutdown()
    return Measured(
        figures={
            "identical": all(len(set(found.values())) == 1 for found in raw.values()),
            "cases": len(raw),
            "ways": len(next(iter(raw.values()))),
        },
        raw=raw,
        n=len(raw),
        config=f"seed: {SEED}\nframes: {FRAMES}\n",
    )


def _begin(model: str, path: Path) -> None:
    """Half a second of the model's own world."""
    from avtok.mux import write_clip

    episode = make_episode(world_settings(model), seed=3_000_000_000, duration_s=0.5)
    truth = episode.truth
    write_clip(path, episode.video_THWC, episode.audio_N, fps=truth.fps, sample_rate=truth.sample_rate)


def _python(model: str, asked: dict[str, Any]) -> str:
    pipe = WorldModelPipeline.from_pretrained(model)
    return pipe(asked["prompt"], video=asked["video"], num_frames=asked["frames"], seed=SEED).sha256


def _command(model: str, asked: dict[str, Any], folder: Path) -> str:
    given = [] if asked["video"] is None else ["--video", str(asked["video"])]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ray_jobs.cli", "generate", model, "--prompt", asked["prompt"], *given),
            *("--frames", str(asked["frames"]), "--seed", str(SEED), "--out", str(folder / "clip.mp4")),
            "--json",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)["sha256"]


def _served(model: str, frames: int, given: Path) -> list[dict[str, str]]:
    """The API's and an actor's answer to words alone and to a beginning, on one cluster."""
    token = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-serve-") as out:
        settings = serve.ServeSettings(find_model(model), model, token, Path(out), port=_free_port())
        server = serve.start(settings)
        try:
            actor: Any = ray.remote(num_cpus=1)(_actor())
            one = actor.remote(model)
            prompt = PROMPTS.get(model, PROMPT)
            return [
                {
                    "api": _post(settings.url, token, prompt, frames, video),
                    "actor": ray.get(one.make.remote(prompt, frames, video, SEED)),
                }
                for video in (None, given)
            ]
        finally:
            server.stop()


def _actor() -> type:
    """Defined in a function so that it travels as it is: this file is on no worker's path."""

    class Actor:
        def __init__(self, model: str) -> None:
            self.pipe = WorldModelPipeline.from_pretrained(model)

        def make(self, prompt: str, frames: int, video: Path | None, seed: int) -> str:
            return self.pipe(prompt, video=video, num_frames=frames, seed=seed).sha256

    return Actor


def _post(url: str, token: str, prompt: str, frames: int, video: Path | None) -> str:
    fields = {"prompt": prompt, "num_frames": str(frames), "seed": str(SEED), "wait": "true"}
    edge = secrets.token_hex(16)
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if video is not None:
        head = f'--{edge}\r\nContent-Disposition: form-data; name="input_video"; filename="given.mp4"\r\n'
        parts.append(f"{head}Content-Type: video/mp4\r\n\r\n".encode() + video.read_bytes() + b"\r\n")
    request = urllib.request.Request(
        f"{url}/v1/videos",
        data=b"".join(parts) + f"--{edge}--\r\n".encode(),
        headers={
            "Authorization": f"Bearer {token}",
            "Content-Type": f"multipart/form-data; boundary={edge}",
        },
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read())["sha256"]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
