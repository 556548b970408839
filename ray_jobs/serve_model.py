"""A replica: one model in one process, one clip at a time."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray_jobs.serve_request import Asked
from worldmodel.pipeline import BadRequest, WorldModelPipeline
from worldmodel.prompt import PromptError


class Stopped(Exception):
    """Nobody waits for the clip any more."""


class ModelReplica:
    def __init__(self, folder: str, name: str) -> None:
        """Loads the model and makes one chunk, so that the first clip takes no longer than the others."""
        self.pipe = WorldModelPipeline.from_pretrained(folder)
        self.pipe.name = name
        self.thread = ThreadPoolExecutor(1)  # the event loop stays free to say how far a clip is
        self.pipe("a", num_frames=self.pipe.cfg.model.chunk_frames, num_inference_steps=1, seed=0)

    async def make(self, asked: Asked) -> AsyncIterator[dict[str, Any]]:
        """{"done", "total"} after each chunk, then {"refused": words}, or the clip: mp4 bytes, sha256,
        num_frames, seconds, and model_s, the seconds that it took."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]]()
        stopped = threading.Event()

        def say(done: int, total: int) -> None:
            if stopped.is_set():
                raise Stopped
            loop.call_soon_threadsafe(events.put_nowait, {"done": done, "total": total})

        making = loop.run_in_executor(self.thread, self._make, asked, say)
        making.add_done_callback(lambda _: events.put_nowait({}))
        try:
            while event := await events.get():
                yield event
            yield await making
        finally:
            stopped.set()

    def _make(self, asked: Asked, say: Any) -> dict[str, Any]:
        began = time.perf_counter()
        say(0, 1)
        with tempfile.TemporaryDirectory(prefix="worldmodel-clip-") as folder:
            names = {
                Path(folder) / f"{what}{file.suffix}": (what, file) for what, file in asked.media.items()
            }
            for path, (_, file) in names.items():
                path.write_bytes(file.content)
            media: dict[str, Any] = {what: path for path, (what, _) in names.items()}
            try:
                clip = self.pipe(
                    asked.read,
                    num_frames=asked.num_frames,
                    num_inference_steps=asked.steps,
                    guidance_scale=asked.guidance,
                    speech_guidance_scale=asked.speech_guidance,
                    seed=asked.seed,
                    progress=say,
                    **media,
                )
            except (BadRequest, PromptError) as error:
                words = str(error)
                for path, (_, file) in names.items():
                    words = words.replace(str(path), file.name)
                return {"refused": words}
            mp4 = clip.save(Path(folder) / "clip.mp4").read_bytes()
        return {
            "mp4": mp4,
            "sha256": clip.sha256,
            "num_frames": len(clip.frames),
            "seconds": len(clip.frames) / clip.frame_rate,
            "model_s": time.perf_counter() - began,
        }
