"""Which clips can teach something, and which phases come: told before hours are spent for nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ray_jobs.errors import UserError
from ray_jobs.plan import Plan
from worldmodel.config import RunConfig

# S clips for training.


@dataclass(frozen=True)
class Contents:
    """What clips for training hold, bool [S]; sound may be beside pictures. is_sample: there are more, like
    these perhaps."""

    films: np.ndarray
    stills: np.ndarray
    sound: np.ndarray
    is_sample: bool = False

    @classmethod
    def of(
        cls, seen_S: np.ndarray, heard_S: np.ndarray, is_still_S: np.ndarray, *, is_sample: bool = False
    ) -> Contents:
        return cls(seen_S & ~is_still_S, seen_S & is_still_S, heard_S, is_sample)

    @classmethod
    def of_plan(cls, plan: Plan) -> Contents:
        kind_K = np.array([bucket.kind for bucket in plan.buckets])
        is_still_S = kind_K[plan.bucket_of[: plan.num_train]] == "still"
        seen_S, heard_S = (plan.table[n].to_numpy()[: plan.num_train] for n in ("has_video", "has_sound"))
        return cls.of(seen_S, heard_S, is_still_S)

    def teach(self, cfg: RunConfig) -> np.ndarray:
        """Bool [S]: whether any of it is trained."""
        taught = [getattr(self, kind) for kind, why in _untaught(cfg).items() if not why]
        return np.logical_or.reduce([np.zeros(len(self.films), dtype=bool), *taught])

    def why_not(self, cfg: RunConfig, some_S: np.ndarray) -> str:
        """What some of them hold, and the settings by which that is not trained."""
        there = {kind: why for kind, why in _untaught(cfg).items() if (getattr(self, kind) & some_S).any()}
        whys = " and ".join(dict.fromkeys(there.values()))
        return f"hold {' and '.join(there)}, and {whys}"


def check_learnable(contents: Contents, cfg: RunConfig) -> None:
    """UserError where no clip for training holds anything that is trained. Others than a sample may."""
    teaches_S = contents.teach(cfg)
    if len(teaches_S) and not teaches_S.any() and not contents.is_sample:
        where = ", ".join(source.manifest for source in cfg.data.sources)
        raise UserError(
            f"{where}: nothing to learn: all clips for training {contents.why_not(cfg, ~teaches_S)}; change "
            "that or give other clips"
        )


def useless_clips(contents: Contents, cfg: RunConfig) -> list[str]:
    """For people: clips that teach nothing."""
    teaches_S = contents.teach(cfg)
    if teaches_S.all():
        return []
    which = "looked at" if contents.is_sample else "for training"
    return [
        f"{np.count_nonzero(~teaches_S)} of {len(teaches_S)} clips {which} teach nothing: they "
        f"{contents.why_not(cfg, ~teaches_S)}"
    ]


def held_out_notes(plan: Plan, cfg: RunConfig) -> list[str]:
    """For people: what held-out clips are too few or too short for."""
    ids = plan.held_out_ids
    if not len(ids):
        return []
    notes, files = list[str](), set(plan.table["uri"].take(ids).to_pylist())
    if len(files) == 1:
        notes.append(
            f"held-out error and rollouts are of one file alone: data.held_out={cfg.data.held_out:g}"
        )
    are_films_S = plan.bucket_of == 0  # of data.clip_s and data.size, as all that are continued
    own = ids[are_films_S[ids]][: cfg.rollout.clips]
    if len(own):
        notes += _too_short(float(plan.table["valid_s"].to_numpy()[own].max()), cfg)
    elif are_films_S.any():
        notes.append(
            "nothing will be continued after training: no held-out clip is a film of data.clip_s and "
            "data.size"
        )
    return notes


def prefix_notes(cfg: RunConfig) -> list[str]:
    """For people: whether a prefix is longer than the clips themselves."""
    return _too_short(cfg.data.clip_s, cfg) if cfg.data.held_out else []


def _too_short(longest_s: float, cfg: RunConfig) -> list[str]:
    frames = int(longest_s * cfg.data.fps + 0.5)  # containers round a duration
    prefix_frames = round(cfg.rollout.prefix_s / cfg.chunk_s) * cfg.model.chunk_frames
    if frames >= prefix_frames:
        return []
    return [
        f"nothing will be continued after training: held-out clips are {longest_s:.3g} s long at most, and "
        f"rollout.prefix_s={cfg.rollout.prefix_s}"
    ]


def never_reached(cfg: RunConfig) -> list[str]:
    """Phases of data.phases that begin after the last step."""
    begins, late = 0, []
    for phase in cfg.data.phases:
        if begins >= cfg.train.steps:
            late.append(f"{phase.name} (at step {begins})")
        begins += phase.steps or 0
    return [f"data.phases: train.steps={cfg.train.steps} ends before {', '.join(late)}"] if late else []


def _untaught(cfg: RunConfig) -> dict[str, str]:
    """By kind: the setting by which it is not trained; empty where it is."""
    objective = cfg.objective
    weights = {"films": "video_weight", "stills": "image_weight", "sound": "audio_weight"}
    found = {k: "" if getattr(objective, name) else f"objective.{name}=0" for k, name in weights.items()}
    if "video" not in cfg.made:
        found |= dict.fromkeys(("films", "stills"), "objective.sound_alone=1 trains sound alone")
    if "audio" not in cfg.made:
        found["sound"] = "objective.picture_alone=1 trains pictures alone"
    return found
