"""Is what a prompt names to be seen and heard: colours, count, materials and directions of bouncing balls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.checks.bootstrap import bootstrap_ci
from worldmodel.checks.of_prompts import Prompted
from worldmodel.checks.result import Check, CheckClip
from worldmodel.checks.timbre import heard_materials
from worldmodel.checks.track_many import track_bodies
from worldmodel.worlds.captions import direction_of
from worldmodel.worlds.drawing import COLORS
from worldmodel.worlds.truth import Truth

# E episodes, T frames, K colours, 2 = (x right, y down).

FACTORS = {"colour": "video", "count": "video", "material": "audio", "direction": "video"}  # and what tells
SEEN_SHARE = 0.5  # of the frames, from which on a colour is there: a plate hides a body for a while
FIRST_FRAMES = 3  # in which a body goes as its prompt says; later it may have bounced
LATEST_FRAME = 4  # to come into sight
COSINE = 0.5  # of the angle to the said direction: captions round to four of them, 45 degrees off at most
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


def prompt_following(prompted: Prompted, *, sample_rate: int, seed: int = 0) -> Check:
    """Each factor's share of episodes in which the clip shows what the prompt says.

    colour: the colours seen are those named. count: as many colours are seen as bodies named. material: most
    sounds are of the named ones. direction: share of the named bodies that set out as said; one that is not
    seen has not. chance: the same against all other episodes' prompts; of directions, against its own
    with all four directions in turn, because another prompt's bodies are mostly not there at all.
    codec: the same of the true clips through the codecs. Factors of what a model does not make are left out.
    """
    rng = np.random.default_rng(seed)
    seen = [Seen(clip, sample_rate) for clip in prompted.generated]
    best = [Seen(clip, sample_rate) for clip in prompted.codec]
    factors: dict[str, Any] = {}
    for factor, modality in FACTORS.items():
        if not prompted.makes(modality):
            continue
        own_E = np.array([one.follows(t, factor) for one, t in zip(seen, prompted.truths, strict=True)])
        low, high = bootstrap_ci(own_E, rng, statistic=np.mean)
        factors[factor] = {
            "accuracy": float(own_E.mean()),
            "ci_low": low,
            "ci_high": high,
            "chance": _by_chance(seen, prompted.truths, factor),
            "codec": float(
                np.mean([one.follows(t, factor) for one, t in zip(best, prompted.truths, strict=True)])
            ),
        }
    return {"factors": factors, "episodes": len(seen)} | {
        key: float(np.mean([factor[key] for factor in factors.values()]))
        for key in ("accuracy", "chance", "codec")
    }


def _by_chance(seen: list[Seen], truths: Sequence[Truth], factor: str) -> float:
    if factor == "direction":
        return float(np.mean([one.goes_by_chance(truth) for one, truth in zip(seen, truths, strict=True)]))
    right_EE = np.array([[one.follows(truth, factor) for truth in truths] for one in seen])
    others = ~np.eye(len(seen), dtype=bool)
    return float(right_EE[others].mean()) if len(seen) > 1 else float("nan")


class Seen:
    """What one clip shows."""

    def __init__(self, clip: CheckClip, sample_rate: int) -> None:
        self.materials: list[str] = []
        self.colors: set[str] = set()
        if clip.audio_N is not None:
            self.materials = heard_materials(clip.audio_N, sample_rate=sample_rate)
        if clip.video_THWC is None:
            return
        self.positions_TK2 = track_bodies(clip.video_THWC, tuple(COLORS))
        there_TK = np.isfinite(self.positions_TK2[..., 0])
        self.colors = {
            name for name, share in zip(COLORS, there_TK.mean(axis=0), strict=True) if share >= SEEN_SHARE
        }

    def follows(self, truth: Truth, factor: str) -> float:
        """0 to 1: how far the clip shows what the caption of `truth` says."""
        if factor == "colour":
            return float(self.colors == set(truth.colors))
        if factor == "count":
            return float(len(self.colors) == len(truth.colors))
        if factor == "material":
            right = sum(name in truth.materials for name in self.materials)
            return float(2 * right > len(self.materials))
        return float(
            np.mean([self._goes(truth, body, said_direction(truth, body)) for body in _bodies(truth)])
        )

    def goes_by_chance(self, truth: Truth) -> float:
        """As `follows` of "direction", had each named body been told another direction, all four in turn."""
        return float(np.mean([self._goes(truth, body, to) for body in _bodies(truth) for to in DIRECTIONS]))

    def _goes(self, truth: Truth, body: int, direction: str) -> bool:
        """Whether the body of that colour sets out about there. It counts from when it comes out from
        behind a plate."""
        path_T2 = self.positions_TK2[:, list(COLORS).index(truth.colors[body])]
        seen = np.flatnonzero(np.isfinite(path_T2[:, 0]))[:FIRST_FRAMES]
        if len(seen) < FIRST_FRAMES or seen[-1] - seen[0] >= FIRST_FRAMES or seen[0] > LATEST_FRAME:
            return False
        step_2 = path_T2[seen[-1]] - path_T2[seen[0]]
        along = float(step_2 @ np.array(DIRECTIONS[direction]))
        return along >= COSINE * float(np.linalg.norm(step_2)) > 0


def _bodies(truth: Truth) -> range:
    return range(len(truth.colors))


def said_direction(truth: Truth, body: int) -> str:
    x, y = truth.velocities_TK2[0, body]
    return direction_of((float(x), float(y)))
