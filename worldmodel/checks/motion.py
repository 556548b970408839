"""Checks that watch: where the bodies are against the truth, and whether their energy stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from worldmodel.checks.bootstrap import bootstrap_ci
from worldmodel.checks.position import (
    constant_velocity_error,
    frozen_error,
    horizons_s,
    position_error,
    unrelated_errors,
)
from worldmodel.checks.result import Check, Pairs, Scene, judged
from worldmodel.checks.track_many import track_bodies

# E episodes, T frames, K generated frames, B bodies, 2 = (x, y) in box widths.

NEAR_S, FAR_S = 0.25, 1.0  # horizons that are named in the table; the series has all of them
MIN_VISIBLE = 0.95  # the centroid of a body that is partly hidden is not its place
ENERGY_WINDOW_S = 0.5
REAPPEAR_FRAMES, REAPPEAR_BOX, MIN_REAPPEARANCES = 2, 0.15, 5
# Seconds after which the noise of the tracker alone, put into the simulator, has grown to a radius: median of
# one, two and three balls. Nobody can predict further.
PHYSICS_LIMIT_S = {1: 14.8, 2: 4.1, 3: 2.5}


def position_checks(pairs: Pairs, num_given: int, fps: float, rng: np.random.Generator) -> dict[str, Check]:
    """Error against horizon; an episode's error is the mean over its bodies that nothing hides."""
    usable = _usable(pairs)
    if not usable:
        return {"position_error": {"skipped": "no true positions: real clips have none"}}
    num_frames = min(len(video) for clip in usable for video in clip[:2])
    if num_frames <= num_given:
        return {"position_error": {"skipped": f"nothing was generated after the {num_given} given frames"}}
    scenes = [scene for _, _, scene in usable]
    truth_E = [scene.positions_TB2[:num_frames] for scene in scenes]
    hidden_E = [scene.visible_TB[num_given:num_frames] < MIN_VISIBLE for scene in scenes]

    def over_bodies(errors_E: list[np.ndarray]) -> np.ndarray:
        """[K, B] of each episode -> [E, K]; NaN where every body is hidden."""
        return np.array(
            [_mean_seen(error_KB, hidden) for error_KB, hidden in zip(errors_E, hidden_E, strict=True)]
        )

    def tracked(videos: list[np.ndarray]) -> np.ndarray:
        found_E = [
            track_bodies(video[:num_frames], scene.colors)
            for video, scene in zip(videos, scenes, strict=True)
        ]
        return over_bodies(
            [
                _each_body(found, truth, lambda a, b: position_error(a, b)[num_given:])
                for found, truth in zip(found_E, truth_E, strict=True)
            ]
        )

    error_EK, floor_EK = tracked([clip[0] for clip in usable]), tracked([clip[1] for clip in usable])
    frozen_EK = over_bodies([_each_body(t, t, lambda a, _: frozen_error(a, num_given)) for t in truth_E])
    straight_EK = over_bodies(
        [_each_body(t, t, lambda a, _: constant_velocity_error(a, num_given)) for t in truth_E]
    )
    unrelated_EK = _unrelated(truth_E, hidden_E, num_given)
    horizon_K = horizons_s(num_frames - num_given, fps)
    interval_K = [bootstrap_ci(error_EK[:, k], rng, statistic=np.nanmedian) for k in range(len(horizon_K))]

    def median(errors_EK: np.ndarray, k: int) -> float:
        return _median(errors_EK[:, k]) if len(errors_EK) else float("nan")

    def at(horizon_s: float) -> Check:
        k = min(max(round(horizon_s * fps), 1), len(horizon_K)) - 1
        return judged(
            median(error_EK, k),
            interval_K[k],
            median(floor_EK, k),
            {"frozen_frame": median(frozen_EK, k), "unrelated_episode": median(unrelated_EK, k)},
            references={"constant_velocity": median(straight_EK, k)},
            unit="box widths",
            better="lower",
            at_s=float(horizon_K[k]),
            episodes=len(usable),
            per_episode=error_EK[:, k].tolist(),
        )

    def series(errors_EK: np.ndarray) -> list[float]:
        return [median(errors_EK, k) for k in range(len(horizon_K))]

    near = at(NEAR_S)
    near["horizon"] = {
        "horizon_s": horizon_K.tolist(),
        "value": series(error_EK),
        "ci_low": [low for low, _ in interval_K],
        "ci_high": [high for _, high in interval_K],
        "floor": series(floor_EK),
        "baselines": {"frozen_frame": series(frozen_EK), "unrelated_episode": series(unrelated_EK)},
        "references": {"constant_velocity": series(straight_EK)},
    }

    def valid(errors_EK: np.ndarray) -> np.ndarray:
        """Valid prediction time over what is possible: what physics allows, or the rollout's length."""
        time_E = valid_prediction_times(errors_EK, np.array([s.radius_B.mean() for s in scenes]), horizon_K)
        most_E = np.array([PHYSICS_LIMIT_S.get(len(s.radius_B), PHYSICS_LIMIT_S[3]) for s in scenes])
        return time_E / np.minimum(most_E, horizon_K[-1])

    prediction_time = judged(
        float(np.median(valid(error_EK))),
        bootstrap_ci(valid(error_EK), rng),
        float(np.median(valid(floor_EK))),
        {"frozen_frame": float(np.median(valid(frozen_EK)))},
        unit="share of what is possible",
        better="higher",
        rollout_s=float(horizon_K[-1]),
        episodes=len(usable),
    )
    long_enough = horizon_K[-1] >= FAR_S - 0.5 / fps
    far = {"position_error_1s": at(FAR_S)} if long_enough else {}
    return {"position_error": near, **far, "valid_prediction_time": prediction_time}


def energy_drift(pairs: Pairs, num_given: int, fps: float, rng: np.random.Generator) -> Check:
    """Kinetic energy at the end of the rollout against that of the given part: |E_end / E_given - 1|.

    A speed is the median step of each axis over half a second, which a bounce in between does not change. A
    body that is lost has no energy.
    """
    window = round(ENERGY_WINDOW_S * fps)
    usable = [
        clip
        for clip in _usable(pairs)
        if min(map(len, clip[:2])) >= num_given + window + 1 and num_given > window
    ]
    if not usable:
        return {"skipped": f"needs true bodies, and {ENERGY_WINDOW_S} s both given and generated"}

    def change(video_THWC: np.ndarray, index: int, *, end_of: np.ndarray | None = None) -> float:
        scene = usable[index][2]
        given_TB2 = track_bodies(usable[index][1], scene.colors)[:num_given]
        later_TB2 = track_bodies(video_THWC, scene.colors) if end_of is None else end_of
        given = _energy(given_TB2[-window - 1 :], scene.mass_B)
        return min(abs(_energy(later_TB2[-window - 1 :], scene.mass_B) / max(given, 1e-6) - 1.0), 10.0)

    episodes = range(len(usable))
    values_E = np.array([change(usable[index][0], index) for index in episodes])
    floors_E = np.array([change(usable[index][1], index) for index in episodes])
    other_E = [
        change(
            usable[index][1],
            index,
            end_of=_of_as_many(usable[(index + 1) % len(usable)][2].positions_TB2, usable[index][2]),
        )
        for index in episodes
    ]
    return judged(
        float(np.median(values_E)),
        bootstrap_ci(values_E, rng),
        float(np.median(floors_E)),
        {
            "frozen_frame": 1.0,
            "unrelated_episode": float(np.median(other_E)) if len(usable) > 1 else float("nan"),
        },
        unit="share of the energy",
        better="lower",
        episodes=len(usable),
        per_episode=values_E.tolist(),
    )


def permanence(pairs: Pairs, num_given: int, rng: np.random.Generator) -> Check:
    """Of the bodies that come out from behind the plate after the given part: how many are there?

    A body counts when it is seen, within REAPPEAR_FRAMES of its first wholly visible true frame, at most
    REAPPEAR_BOX box widths from its true place.
    """
    found_E, floor_E, frozen_E = [], [], []
    for rollout, truth, scene in _usable(pairs):
        frames = min(len(rollout), len(truth))
        ours, real = (track_bodies(video[:frames], scene.colors) for video in (rollout, truth))
        stuck = np.broadcast_to(real[num_given - 1], real.shape)
        for body, frame in _reappearances(scene.visible_TB[:frames], num_given):
            for found, track in ((found_E, ours), (floor_E, real), (frozen_E, stuck)):
                found.append(_is_there(track[:, body], scene.positions_TB2[:frames, body], frame))
    if len(found_E) < MIN_REAPPEARANCES:
        return {
            "skipped": f"{len(found_E)} bodies come out from behind something; it needs {MIN_REAPPEARANCES}"
        }
    values_E = np.array(found_E, dtype=float)
    return judged(
        float(values_E.mean()),
        bootstrap_ci(values_E, rng, statistic=np.mean),
        float(np.mean(floor_E)),
        {"frozen_frame": float(np.mean(frozen_E))},
        unit="share of bodies",
        better="higher",
        episodes=len(found_E),
    )


def _reappearances(visible_TB: np.ndarray, num_given: int) -> list[tuple[int, int]]:
    """(body, first wholly visible frame) after each time that a body was hidden, past the given part."""
    found = []
    for body in range(visible_TB.shape[1]):
        was_hidden = False
        for frame, visible in enumerate(visible_TB[:, body]):
            was_hidden |= visible < 1 - MIN_VISIBLE
            if was_hidden and visible >= MIN_VISIBLE:
                was_hidden = False
                if frame >= num_given:
                    found.append((body, frame))
    return found


def _is_there(track_T2: np.ndarray, truth_T2: np.ndarray, frame: int) -> bool:
    near = slice(frame, frame + REAPPEAR_FRAMES + 1)
    distance = np.linalg.norm(track_T2[near] - truth_T2[near], axis=1)
    return bool((distance <= REAPPEAR_BOX).any())


def valid_prediction_times(error_EK: np.ndarray, radius_E: np.ndarray, horizon_K: np.ndarray) -> np.ndarray:
    """Seconds for which each episode's error stays within its mean radius; at most the whole rollout."""
    over_EK = np.nan_to_num(error_EK, nan=0.0) > radius_E[:, None]
    good_E = np.where(over_EK.any(axis=1), over_EK.argmax(axis=1), len(horizon_K))
    return np.concatenate([[0.0], horizon_K])[good_E]


def _usable(pairs: Pairs) -> list[tuple[np.ndarray, np.ndarray, Scene]]:
    """Rollout, truth and scene of clips with pictures whose bodies can be told apart."""
    return [
        (rollout.video_THWC, truth.video_THWC, truth.scene)
        for rollout, truth in pairs
        if rollout.video_THWC is not None
        and truth.video_THWC is not None
        and truth.scene is not None
        and (len(set(truth.scene.colors)) == truth.scene.positions_TB2.shape[1] or _is_alone(truth.scene))
    ]


def _is_alone(scene: Scene) -> bool:
    return scene.positions_TB2.shape[1] == 1


def _each_body(
    found_TB2: np.ndarray, truth_TB2: np.ndarray, error: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    return np.stack([error(found_TB2[:, b], truth_TB2[:, b]) for b in range(truth_TB2.shape[1])], axis=1)


def _mean_seen(error_KB: np.ndarray, hidden_KB: np.ndarray) -> np.ndarray:
    seen_KB = ~hidden_KB
    total_K = np.where(seen_KB, error_KB, 0.0).sum(axis=1)
    return np.where(seen_KB.any(axis=1), total_K / np.maximum(seen_KB.sum(axis=1), 1), np.nan)


def _unrelated(truth_E: list[np.ndarray], hidden_E: list[np.ndarray], num_given: int) -> np.ndarray:
    """Each body against those of other episodes: [N, K]."""
    rows = []
    for number in range(max(truth.shape[1] for truth in truth_E)):
        having = [index for index, truth in enumerate(truth_E) if truth.shape[1] > number]
        errors_NK = unrelated_errors([truth_E[index][:, number] for index in having], num_given)
        for row, error_K in enumerate(errors_NK):
            hidden_K = hidden_E[having[row % len(having)]][: len(error_K), number]
            rows.append(np.where(hidden_K, np.nan, error_K))
    return np.array(rows) if rows else np.zeros((0, 0))


def _median(values_E: np.ndarray) -> float:
    return float(np.nanmedian(values_E)) if np.isfinite(values_E).any() else float("nan")


def _of_as_many(positions_TB2: np.ndarray, scene: Scene) -> np.ndarray:
    """Bodies of another episode, repeated or dropped until there are as many."""
    count = scene.positions_TB2.shape[1]
    return positions_TB2[:, np.arange(count) % positions_TB2.shape[1]]


def _energy(path_TB2: np.ndarray, mass_B: np.ndarray) -> float:
    """Sum of mass * speed^2, in box widths a frame."""
    step_TB2 = np.abs(np.diff(path_TB2, axis=0))
    seen_B = np.isfinite(step_TB2).all(axis=2).sum(axis=0) >= 3
    speed_B2 = np.array([np.nanmedian(step_TB2[:, b], axis=0) for b in np.flatnonzero(seen_B)])
    return float((mass_B[seen_B, None] * speed_B2**2).sum()) if seen_B.any() else 0.0
