"""Rollout actors continue clips chunk by chunk from a real prefix and write .mp4 with sound."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.exceptions
import torch
from pydantic import ValidationError

from avtok.decode import ClipError, decode_clip
from avtok.load import load_codec
from avtok.mux import write_clip
from ray_jobs.errors import JobError, UserError
from ray_jobs.export import load_exported
from ray_jobs.index import index_sources
from ray_jobs.plan import PADDING, Plan, Sample, make_plan
from ray_jobs.readers import local_file
from ray_jobs.rollout_rows import ROLLOUTS_FILE
from ray_jobs.stages import EncodeBatch, to_latent_batch
from ray_jobs.stores import StoreError
from worldmodel.batch import LatentBatch
from worldmodel.config import RolloutConfig, RunConfig
from worldmodel.export import codecs_of
from worldmodel.session import Latents, RolloutSessions

CPUS_PER_ACTOR = 1
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prompt:
    """One clip to continue. The seed decides its noise and nothing else does."""

    sample_id: int
    seed: int


def prompts_from(source: str, cfg: RunConfig, rollout: RolloutConfig) -> Plan:
    """Every clip of a folder or manifest, cut to prefix and continuation. UserError when there is none."""
    clip_s = rollout.prefix_s + rollout.seconds
    data = cfg.data.model_copy(
        update={"clip_s": clip_s, "held_out": 0.0, "buckets": (), "batch_tokens": None}
    )
    with tempfile.TemporaryDirectory(prefix="worldmodel-prompts-") as folder:
        manifest = f"{folder}/prompts.parquet"
        index_sources([source], out=manifest)
        return make_plan(manifest, cfg.model_copy(update={"data": data}))


def rollout_settings(cfg: RunConfig, given: dict[str, Any]) -> RolloutConfig:
    """The model's own with what is given instead. UserError for what no rollout can be made with."""
    values = cfg.model_dump()
    values["rollout"] |= given
    try:
        return RunConfig.model_validate(values).rollout
    except ValidationError as error:
        names = [
            f"{problem['loc'][-1]}={problem['input']}: " if problem["loc"] else ""
            for problem in error.errors()
        ]
        said = [problem["msg"].removeprefix("Value error, ") for problem in error.errors()]
        raise UserError(*(f"{name}{words}" for name, words in zip(names, said, strict=True))) from None


def run_rollouts(
    model: Path,
    plan: Plan,
    sample_ids: Sequence[int],
    *,
    out: Path,
    rollout: RolloutConfig,
    seed: int = 0,
    beside: dict[str, Path] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Continues the samples with rollout.actors actors, rollout.sessions_per_actor sessions at a time; writes
    clips and rollouts.json into `out`. UserError when nothing can be continued, JobError when an actor
    breaks. Ray is connected.

    beside: other models by name; they continue the first rollout.show clips too, as row["beside"][name].
    """
    beside = beside or {}
    for folder in (model, *beside.values()):
        load_exported(folder)  # a clear error here rather than one of an actor
    out.mkdir(parents=True, exist_ok=True)
    prompts = [Prompt(int(sample), seed + int(sample)) for sample in sample_ids]
    if not prompts:
        raise UserError(f"{model}: no clip to continue")
    size = rollout.sessions_per_actor
    groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    shown = prompts[: rollout.show] if beside else []
    total = len(prompts) + len(beside) * len(shown)
    plan_ref = ray.put(plan)
    # No restart: an actor holds no state that a new call could not make again.
    actor: Any = ray.remote(num_cpus=CPUS_PER_ACTOR)(RolloutActor)

    def gather(jobs: list[tuple[Any, list[Prompt]]], done: int) -> list[dict[str, Any]]:
        """Rows of (actor, prompts) jobs. An actor without jobs left ends: others may wait for its CPU."""
        pending = {one.run.remote(group): (one, group) for one, group in jobs}
        rows: list[dict[str, Any]] = []
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            try:
                rows += ray.get(ready)
            except ray.exceptions.RayError as error:
                raise JobError(
                    f"{out}: a rollout actor broke: {str(error).splitlines()[-1]}; start it again"
                ) from None
            ended, group = pending.pop(ready)
            done += len(group)
            if progress:
                progress(done, total)
            if all(one != ended for one, _ in pending.values()):
                ray.kill(ended)
        return rows

    actors = [actor.remote(str(model), plan_ref, rollout, str(out)) for _ in groups[: rollout.actors]]
    rows = gather([(actors[i % len(actors)], group) for i, group in enumerate(groups)], 0)
    if shown:  # only now: a cluster may have CPUs for rollout.actors and no more
        others = [actor.remote(str(path), plan_ref, rollout, str(out), name) for name, path in beside.items()]
        rows += gather([(other, shown) for other in others], len(prompts))
    if not rows:
        raise UserError(
            f"{out}: none of {len(prompts)} clips has the prefix of {rollout.prefix_s} s that a rollout needs"
        )
    rows = _merged(rows)
    (out / ROLLOUTS_FILE).write_text(json.dumps(rows, indent=1))
    return rows


def _merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a sample, in their order; what other models made of it stands under "beside"."""
    ours = {row["sample_id"]: row for row in rows if "beside" not in row}
    for row in rows:
        if "beside" in row and row["sample_id"] in ours:
            ours[row["sample_id"]].setdefault("beside", {}).update(row["beside"])
    return sorted(ours.values(), key=lambda row: row["sample_id"])


class RolloutActor:
    """One copy of the model; several sessions in lockstep. `name` is empty for the model that is judged."""

    def __init__(self, model: str, plan: Plan, rollout: RolloutConfig, out: str, name: str = "") -> None:
        torch.set_num_threads(1)
        self.name = name
        self.loaded = load_exported(Path(model))
        self.plan, self.rollout, self.out = plan, rollout, Path(out)
        cfg = self.loaded.cfg
        clip_s = max(cfg.data.clip_s, rollout.prefix_s)
        video, audio = codecs_of(Path(model), cfg)
        self.cfg = cfg.model_copy(
            update={
                "data": cfg.data.model_copy(update={"clip_s": clip_s, "cache": ""}),
                "codec": cfg.codec.model_copy(update={"video": video, "audio": audio}),
            }
        )
        self.encode = EncodeBatch(plan, self.cfg)
        self.video, self.audio = load_codec(video), load_codec(audio)

    def run(self, prompts: list[Prompt]) -> list[dict[str, Any]]:
        """Rows of rollouts.json; a clip that cannot be read, or is shorter than the prefix, has none."""
        batch, latents = self.generate(prompts)
        layout = self.loaded.model.layout
        prefix_chunks = round(self.rollout.prefix_s / self.cfg.chunk_s)
        has_video = batch.video.valid_BT[:, : prefix_chunks * layout.video_steps].all(1)
        has_audio = batch.audio.valid_BT[:, : prefix_chunks * layout.audio_steps].all(1)
        return [
            self._write(
                prompt, latents.video[i] if has_video[i] else None, latents.audio[i] if has_audio[i] else None
            )
            for i, prompt in enumerate(prompts)
            if prompt.sample_id != PADDING and (has_video[i] or has_audio[i])
        ]

    def generate(self, prompts: list[Prompt]) -> tuple[LatentBatch, Latents]:
        """The clips as they are, and their prefixes with what follows."""
        ids = np.array([p.sample_id for p in prompts])
        batch = to_latent_batch(self.encode.encode_batch(-1, -1, ids, self.encode.own))
        chunk_s = self.cfg.chunk_s
        prefix_chunks = round(self.rollout.prefix_s / chunk_s)
        batch = batch.only(self.cfg.made)
        sessions = RolloutSessions(self.loaded.model, self.rollout, self.loaded.prediction, self.cfg.made)
        sessions.reset(batch, prefix_chunks=prefix_chunks, seeds=[p.seed for p in prompts])
        for _ in range(round(self.rollout.seconds / chunk_s)):
            sessions.step()
        return batch, sessions.latents()

    def _write(
        self, prompt: Prompt, video: torch.Tensor | None, audio: torch.Tensor | None
    ) -> dict[str, Any]:
        data, sample = self.cfg.data, self.plan.sample(prompt.sample_id)
        frames = None if video is None else np.asarray(self.video.decode(video))
        sound = None if audio is None else np.asarray(self.audio.decode(audio))
        name = f"{prompt.sample_id:06d}"
        file = f"{name}_{self.name or 'rollout'}.mp4"
        write_clip(self.out / file, frames, sound, fps=data.fps, sample_rate=data.sample_rate)
        if self.name:
            return {"sample_id": prompt.sample_id, "beside": {self.name: file}}
        digest = hashlib.sha256()
        for part in (video, audio):
            digest.update(b"" if part is None else part.numpy().tobytes())
        return {
            "sample_id": prompt.sample_id,
            "seed": prompt.seed,
            "caption": sample.text,
            "source": sample.uri,
            "start_s": sample.start_s,
            "prefix_s": self.rollout.prefix_s,
            "seconds": self.rollout.seconds,
            "rollout": file,
            "truth": self._write_truth(name, sample),
            "latents_sha256": digest.hexdigest(),
        }

    def _write_truth(self, name: str, sample: Sample) -> str:
        """The real clip as the model could at best show it: same size, rates and length."""
        data = self.cfg.data
        end_s = min(sample.end_s, sample.start_s + self.rollout.prefix_s + self.rollout.seconds)
        try:
            clip = decode_clip(
                local_file(sample.uri, data),
                start_s=sample.start_s,
                end_s=end_s,
                fps=data.fps,
                size=data.size,
                sample_rate=data.sample_rate,
                audio_uri=local_file(sample.audio_uri, data) if sample.audio_uri else None,
            )
        except (ClipError, StoreError) as error:  # it was read a moment ago, so the disk failed
            raise JobError(f"{sample.uri}: cannot be read any more: {error}") from None
        path = self.out / f"{name}_truth.mp4"
        write_clip(path, clip.video_THWC, clip.audio_N, fps=data.fps, sample_rate=data.sample_rate)
        return path.name
