"""The table of clips that are asked for: they wait in line, are made, are kept as files, are forgotten.

Knows neither HTTP nor Ray. Everything runs on one event loop; files are written off it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ray_jobs.serve_problems import Problem
from ray_jobs.serve_request import Asked

Status = Literal["queued", "in_progress", "completed", "failed"]
# What a replica says while it makes a clip: {"done", "total"} a chunk, then {"refused"} or the clip itself.
Make = Callable[[Asked], AsyncIterator[dict[str, Any]]]
MAX_WAITING = 256
TRIES = 2
KEPT = ("sha256", "num_frames", "seconds", "model_s")  # of what a replica says of the clip


class ReplicaLost(Exception):
    """The process that made the clip is gone."""


@dataclass(eq=False)
class Job:
    """One clip. about: what its answer says besides status and progress."""

    id: str
    created_at: int
    about: dict[str, Any]
    asked: Asked | None = None  # until it is made
    status: Status = "queued"
    progress: int = 0
    error: dict[str, str] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    making: asyncio.Task[None] | None = None

    def answer(self) -> dict[str, Any]:
        found = {"id": self.id, "object": "video", "status": self.status, "progress": self.progress}
        found |= {"created_at": self.created_at, **self.about}
        return found if self.error is None else {**found, "error": self.error}


class Jobs:
    def __init__(self, make: Make, *, folder: Path, keep: int, at_once: int) -> None:
        """at_once: replicas, each of which makes one clip at a time. keep: newest clips that stay. Clips that
        an earlier server left in `folder` are there again."""
        self.make, self.folder, self.keep, self.at_once = make, folder, keep, at_once
        folder.mkdir(parents=True, exist_ok=True)
        self.jobs: dict[str, Job] = {}
        self.waiting: asyncio.Queue[Job] = asyncio.Queue()
        self.workers: set[asyncio.Task[None]] = set()
        for path in sorted(folder.glob("video_*.json"), key=lambda path: path.stat().st_mtime):
            self._restore(path)

    def add(self, asked: Asked, about: dict[str, Any]) -> Job:
        """Puts a clip in line. Problem when the line is too long."""
        if self.waiting.qsize() >= MAX_WAITING:
            raise Problem(
                429,
                "busy",
                f"{MAX_WAITING} clips wait already; ask again later",
                headers={"Retry-After": "10"},
            )
        job = Job(f"video_{uuid.uuid4().hex[:20]}", int(time.time()), about, asked)
        self.jobs[job.id] = job
        self.waiting.put_nowait(job)
        while len(self.workers) < self.at_once:
            # in a context of its own, for it outlives the request that begins it
            self.workers.add(asyncio.create_task(self._work(), context=Context()))
        return job

    def get(self, name: str) -> Job:
        if name not in self.jobs:
            raise Problem(404, "not-found", f"no clip is named {name!r:.60}; it may have made room for newer")
        return self.jobs[name]

    def newest(self, limit: int) -> list[Job]:
        return list(reversed(self.jobs.values()))[:limit]

    def file(self, job: Job) -> Path:
        return self.folder / f"{job.id}.mp4"

    async def delete(self, name: str) -> None:
        """Also ends its making."""
        job = self.get(name)
        del self.jobs[name]
        if job.making is not None:
            job.making.cancel()
        self._end(job, "failed", {"code": "deleted", "message": "the clip was deleted"})
        await asyncio.to_thread(self._remove, job)

    async def _work(self) -> None:
        while True:
            job = await self.waiting.get()
            if job.id not in self.jobs:
                continue
            job.making = asyncio.create_task(self._make(job))
            await asyncio.wait([job.making])
            if not job.making.cancelled() and (error := job.making.exception()):
                logging.getLogger("ray.serve").error("%s failed", job.id, exc_info=error)
                words = str(error).strip().splitlines() or [repr(error)]
                self._fail(job, "server", f"the model failed: {words[-1]:.200}")
            self._fail(job, "server", "the model's process stopped before the clip was made")
            if job.id not in self.jobs:  # deleted while it was written
                await asyncio.to_thread(self._remove, job)
            job.asked = job.making = None
            await self._make_room()

    async def _make(self, job: Job) -> None:
        """The same seed gives the same clip, so a clip whose process was lost is begun once more."""
        assert job.asked is not None, "a clip that waits is asked for"
        for tries_left in reversed(range(TRIES)):
            try:
                async for event in self.make(job.asked):
                    await self._follow(job, event)
                return
            except ReplicaLost:
                job.status, job.progress = "queued", 0
                if not tries_left:
                    self._fail(job, "lost", f"the model's process ended {TRIES} times while it made the clip")

    async def _follow(self, job: Job, event: dict[str, Any]) -> None:
        job.status = "in_progress"
        if "refused" in event:
            self._fail(job, "refused", event["refused"])
        elif "mp4" in event:
            job.about |= {name: event[name] for name in KEPT}
            await asyncio.to_thread(self._write, job, event["mp4"])
            if job.id in self.jobs:
                job.progress = 100
                self._end(job, "completed")
        else:
            job.progress = min(99, 100 * event["done"] // event["total"])

    def _fail(self, job: Job, code: str, message: str) -> None:
        self._end(job, "failed", {"code": code, "message": message})

    def _end(self, job: Job, status: Status, error: dict[str, str] | None = None) -> None:
        """Does nothing to a clip that has ended."""
        if not job.ended.is_set():
            job.status, job.error = status, error
            job.ended.set()

    async def _make_room(self) -> None:
        """The newest `keep` that ended stay."""
        ended = [job for job in self.jobs.values() if job.ended.is_set()]
        for job in ended[: max(0, len(ended) - self.keep)]:
            del self.jobs[job.id]
            await asyncio.to_thread(self._remove, job)

    def _write(self, job: Job, mp4: bytes) -> None:
        """With what is said of it, for the next server."""
        self.file(job).write_bytes(mp4)
        about = {"created_at": job.created_at, "about": job.about}
        self.file(job).with_suffix(".json").write_text(json.dumps(about), "utf-8")

    def _remove(self, job: Job) -> None:
        for path in (self.file(job), self.file(job).with_suffix(".json")):
            path.unlink(missing_ok=True)

    def _restore(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text("utf-8"))
        except json.JSONDecodeError:  # the server died while it wrote
            return
        job = Job(path.stem, found["created_at"], found["about"], status="completed", progress=100)
        job.ended.set()
        if self.file(job).exists():
            self.jobs[job.id] = job
