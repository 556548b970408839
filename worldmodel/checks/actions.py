"""Does the pusher do what it is told? Its velocity in generated pictures against the commanded one.

Of the intervals between frames, pooled over episodes, those count in which the simulator's pusher is free: it
does what it is told up to FREE, as it does not where a wall stops it. With v measured and a commanded:
NAFE = mean |v - a| / mean |a|; R2 = 1 - sum |v - a|^2 / sum |a - mean a|^2; shuffle ratio = NAFE of pictures
made under another episode's actions over NAFE of those made under their own, both against their own. Over all
intervals, lag is the shift of v, in frames, at which it correlates best with a. A pusher that is not seen
goes nowhere: v = 0. Floors are of the simulator's pictures, coded: what the tracker and the codec add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldmodel.batch import LatentBatch
from worldmodel.checks.bootstrap import bootstrap_pooled_ci
from worldmodel.checks.of_model import Decoder
from worldmodel.checks.result import Check, judged, without_nan
from worldmodel.checks.track_pusher import track_pusher
from worldmodel.config import RunConfig
from worldmodel.model.transformer import WorldTransformer
from worldmodel.session import RolloutSessions
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.clips import make_clips
from worldmodel.worlds.settings import world_settings
from worldmodel.worlds.truth import Episode

# E episodes, T frames, F generated intervals (from one frame to the next), B sessions, 2 is x and y.

LAGS = range(-2, 5)  # frames
FREE = 0.1  # box widths/s: by so much the pusher's inertia may hold it back


@dataclass(frozen=True, eq=False)
class Followed:
    """Velocities [F, 2] of one episode, in box widths/s: what was told, and what the pusher then did.

    own: the episode's actions. other: another's. measured: in pictures made under each. floor: in the true
    pictures, coded. simulated: what the simulator's pusher does under each.
    """

    own_F2: np.ndarray
    other_F2: np.ndarray
    measured_F2: np.ndarray
    measured_other_F2: np.ndarray
    floor_F2: np.ndarray
    simulated_F2: np.ndarray
    simulated_other_F2: np.ndarray


def velocities(video_THWC: np.ndarray, fps: float) -> np.ndarray:
    """[T - 1, 2] of the pusher in uint8 frames; 0 where it is not seen."""
    return np.nan_to_num(np.diff(track_pusher(video_THWC), axis=0) * fps, nan=0.0)


def nafe(moved_N2: np.ndarray, told_N2: np.ndarray) -> float:
    """Mean error over mean commanded speed; NaN where nothing was commanded."""
    speed = float(np.linalg.norm(told_N2, axis=-1).sum())
    return float(np.linalg.norm(moved_N2 - told_N2, axis=-1).sum()) / speed if speed else float("nan")


def r2(moved_N2: np.ndarray, told_N2: np.ndarray) -> float:
    """Share of the variance of what was told that is followed; NaN where it has none."""
    spread = float(np.square(told_N2 - told_N2.mean(0)).sum()) if len(told_N2) else 0.0
    return 1.0 - float(np.square(moved_N2 - told_N2).sum()) / spread if spread else float("nan")


def lag_frames(moved_EF2: np.ndarray, told_EF2: np.ndarray) -> int:
    """Of LAGS the shift at which they correlate best; positive when the pusher is late."""

    def correlation(lag: int) -> float:
        last = told_EF2.shape[1]
        late = moved_EF2[:, max(lag, 0) : last + min(lag, 0)].ravel()
        early = told_EF2[:, max(-lag, 0) : last - max(lag, 0)].ravel()
        size = np.linalg.norm(late) * np.linalg.norm(early)
        return float(late @ early / size) if size else -1.0

    return max((lag for lag in LAGS if abs(lag) < told_EF2.shape[1]), key=correlation)


def action_check(episodes: Sequence[Followed], rng: np.random.Generator) -> Check:
    """NAFE with its floor and baselines, and beside it what the module's first lines define.

    free_share: of intervals. all_intervals: NAFE where walls count, too, and the simulator's own. other_nafe:
    of pictures made under another episode's actions, against those, which the past does not give away.
    """
    if not episodes:
        return {"skipped": "no episode has actions"}
    own, other, measured, measured_other, floor, simulated, simulated_other = (
        np.stack([getattr(episode, name) for episode in episodes]) for name in Followed.__annotations__
    )
    free_EF, free_other_EF = _is_free(simulated, own), _is_free(simulated_other, other)

    def error(moved_EF2: np.ndarray, pick_E: np.ndarray | slice = slice(None)) -> float:
        where_EF = free_EF[pick_E]
        return nafe(moved_EF2[pick_E][where_EF], own[pick_E][where_EF])

    value, floor_nafe = error(measured), error(floor)
    found = judged(
        value,
        bootstrap_pooled_ci(len(episodes), rng, statistic=lambda pick_E: error(measured, pick_E)),
        floor_nafe,
        {"frozen_frame": error(np.zeros_like(own)), "another_episodes_actions": error(other)},
        references={"simulator": error(simulated)},
        unit="of the commanded speed",
        better="lower",
        episodes=len(episodes),
        free_share=float(free_EF.mean()),
        r2=r2(measured[free_EF], own[free_EF]),
        r2_floor=r2(floor[free_EF], own[free_EF]),
        shuffle_ratio=error(measured_other) / value if value else float("nan"),
        shuffle_ratio_of_simulator=error(simulated_other) / floor_nafe if floor_nafe else float("nan"),
        lag_frames=lag_frames(measured, own),
        lag_frames_floor=lag_frames(floor, own),
        other_nafe=nafe(measured_other[free_other_EF], other[free_other_EF]),
        all_intervals={
            "nafe": nafe(measured, own),
            "floor": nafe(floor, own),
            "simulator": nafe(simulated, own),
            "r2": r2(measured.reshape(-1, 2), own.reshape(-1, 2)),
            "against_simulator": nafe(measured, simulated),
        },
    )
    return without_nan(found)


def _is_free(simulated_EF2: np.ndarray, told_EF2: np.ndarray) -> np.ndarray:
    return np.linalg.norm(simulated_EF2 - told_EF2, axis=-1) <= FREE


@torch.no_grad()
def follow_actions(
    model: WorldTransformer,
    cfg: RunConfig,
    video: Decoder,
    audio: Decoder,
    *,
    seeds: Sequence[int],
    split: str = "in",
    device: torch.device | str = "cpu",
) -> list[Followed]:
    """Rolls the model out on world `pusher` as cfg.rollout says, twice: under own actions, and under the next
    episode's. ValueError for fewer than two seeds, and a model that makes no pictures."""
    if "video" not in cfg.made:
        raise ValueError("how actions are followed is seen, and the model was trained without pictures")
    if len(seeds) < 2:
        raise ValueError(f"actions are shuffled among at least 2 episodes, got {len(seeds)} seeds")
    rollout, settings = cfg.rollout, world_settings("pusher", split)
    length_s = rollout.prefix_s + rollout.seconds
    longer = cfg.model_copy(update={"data": cfg.data.model_copy(update={"clip_s": length_s})})
    first = round(rollout.prefix_s * cfg.data.fps) - 1  # the action that leads into the first generated frame
    truths = [simulate(settings, seed=seed, duration_s=length_s) for seed in seeds]
    found: list[Followed] = []
    for begin in range(0, len(seeds), rollout.sessions_per_actor):
        numbers = range(begin, min(begin + rollout.sessions_per_actor, len(seeds)))
        some = [seeds[number] for number in numbers]
        clips = make_clips("pusher", some, longer, video, audio, split=split)
        batch = clips.batch(range(len(some)), longer, epoch=-1, batch_id=0).to(device)
        shuffled_BFA = batch.actions_BFA.clone()
        for row, number in enumerate(numbers):
            another_T2 = _actions(truths[(number + 1) % len(truths)])
            shuffled_BFA[row, first:, :2] = torch.from_numpy(another_T2[first:])
        own = _rolled(model, cfg, video, batch, some)
        other = _rolled(model, cfg, video, replace(batch, actions_BFA=shuffled_BFA), some)
        for row, number in enumerate(numbers):
            told_T2 = shuffled_BFA[row, :, :2].cpu().numpy()
            turned = simulate(settings, seed=some[row], duration_s=length_s, actions_T2=told_T2)
            coded_THWC = np.asarray(video.decode(video.encode(truths[number].video_THWC)))
            pictures = [velocities(v[first:], cfg.data.fps) for v in (own[row], other[row], coded_THWC)]
            paths = [_path_velocities(e, first, cfg.data.fps) for e in (truths[number], turned)]
            own_T2 = _actions(truths[number])
            found.append(Followed(own_T2[first:-1], told_T2[first:-1], *pictures, *paths))
    return found


def _rolled(
    model: WorldTransformer, cfg: RunConfig, video: Decoder, batch: LatentBatch, seeds: list[int]
) -> list[np.ndarray]:
    """Pictures of whole clips, their beginning as it is coded."""
    sessions = RolloutSessions(model, cfg.rollout, cfg.objective.prediction, cfg.made)
    sessions.reset(batch, prefix_chunks=round(cfg.rollout.prefix_s / cfg.chunk_s), seeds=seeds)
    for _ in range(round(cfg.rollout.seconds / cfg.chunk_s)):
        sessions.step()
    latents: Tensor = sessions.latents().video.cpu()
    return [np.asarray(video.decode(row)) for row in latents]


def _actions(episode: Episode) -> np.ndarray:
    assert episode.truth.actions_T2 is not None, "world pusher has actions"
    return episode.truth.actions_T2


def _path_velocities(episode: Episode, first: int, fps: float) -> np.ndarray:
    assert episode.truth.pusher_T2 is not None, "world pusher has a pusher"
    return np.diff(episode.truth.pusher_T2[first:], axis=0) * fps
