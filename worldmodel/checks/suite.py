"""All checks over pairs of rollout and truth: each number with its floor, its baselines and an interval.

floor: the same measurement on the truth itself. baseline: what needs no model, such as a frozen frame.
score S = clip(1 - (value - floor) / (baseline - floor), 0, 1): 1 equals the truth, 0 the best baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from worldmodel.checks.bootstrap import bootstrap_ci, bootstrap_pooled_ci
from worldmodel.checks.drift import colour_drift, loudness_drift_db
from worldmodel.checks.freeze import black_share, longest_freeze_s, still_share
from worldmodel.checks.onset import (
    LAG_WINDOW_S,
    contacts_from_track,
    detect_onsets,
    f1,
    match_counts,
    merge_close,
    mode_lag_s,
    nearest_lags_s,
    pairwise_lags_s,
)
from worldmodel.checks.position import (
    constant_velocity_error,
    frozen_error,
    horizons_s,
    position_error,
    unrelated_errors,
)
from worldmodel.checks.result import Check, CheckClip, judged, judged_mean, without_nan
from worldmodel.checks.track import track_body

# E episodes, T frames, K generated frames, N samples, C contacts, 2 = (x, y) in box widths.

NEAR_S, FAR_S = 0.25, 1.0  # horizons that are named in the table; the series has all of them
MIN_CONTACTS = 5  # fewer say nothing about a lag


def run_checks(
    rollouts: Sequence[CheckClip],
    truths: Sequence[CheckClip],
    *,
    prefix_s: float,
    fps: float,
    sample_rate: int,
    seed: int,
) -> dict[str, Any]:
    """{"checks": {name: check or {"skipped": reason}}, "position_error_025s_over_frozen", ...} for JSON.

    rollouts[i] continues the first `prefix_s` seconds of truths[i]. Only what follows the prefix is judged.
    """
    if len(rollouts) != len(truths):
        raise ValueError(
            f"{len(rollouts)} rollouts but {len(truths)} truths; give one truth per rollout, in its order"
        )
    if round(prefix_s * fps) < 1:
        raise ValueError(f"prefix_s={prefix_s} holds no frame at {fps} fps; give at least {1 / fps:.3f} s")
    pairs = list(zip(rollouts, truths, strict=True))
    rng = np.random.default_rng(seed)
    checks = {
        **_position(pairs, round(prefix_s * fps), fps, rng),
        "contact_sound_lag": _contact_sound_lag(pairs, prefix_s, fps, sample_rate, rng),
        "onset_f1": _onset_f1(pairs, prefix_s, sample_rate, rng),
        "freeze": _freeze(pairs, round(prefix_s * fps), fps, rng),
        "colour_drift": _colour_drift(pairs, round(prefix_s * fps), rng),
        "loudness_drift": _loudness_drift(pairs, round(prefix_s * sample_rate), rng),
    }
    position = checks["position_error"]
    over_frozen = None
    if "skipped" not in position and position["baselines"]["frozen_frame"] > 0:
        over_frozen = position["value"] / position["baselines"]["frozen_frame"]
    result = {
        "episodes": len(pairs),
        "prefix_s": prefix_s,
        "position_error_025s_over_frozen": over_frozen,
        "checks": checks,
    }
    return without_nan(result)


def _position(pairs: list, num_given: int, fps: float, rng: np.random.Generator) -> dict[str, Check]:
    usable = [
        (rollout.video_THWC, truth.video_THWC, truth.positions_T2)
        for rollout, truth in pairs
        if rollout.video_THWC is not None and truth.video_THWC is not None and truth.positions_T2 is not None
    ]
    if not usable:
        return {"position_error": {"skipped": "no true positions: real clips have none"}}
    num_frames = min(min(map(len, clip)) for clip in usable)
    if num_frames <= num_given:
        return {"position_error": {"skipped": f"nothing was generated after the {num_given} given frames"}}
    truth_ET2 = [positions[:num_frames] for _, _, positions in usable]
    error_EK, floor_EK = (
        np.array(
            [
                position_error(track_body(clip[which][:num_frames]).positions_T2, truth)[num_given:]
                for clip, truth in zip(usable, truth_ET2, strict=True)
            ]
        )
        for which in (0, 1)
    )
    frozen_EK = np.array([frozen_error(truth, num_given) for truth in truth_ET2])
    straight_EK = np.array([constant_velocity_error(truth, num_given) for truth in truth_ET2])
    unrelated_EK = unrelated_errors(truth_ET2, num_given)
    horizon_K = horizons_s(num_frames - num_given, fps)
    interval_K = [bootstrap_ci(error_EK[:, k], rng) for k in range(len(horizon_K))]

    def median(errors_EK: np.ndarray, k: int) -> float:
        return float(np.median(errors_EK[:, k])) if len(errors_EK) else float("nan")

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
    long_enough = horizon_K[-1] >= FAR_S - 0.5 / fps
    return {"position_error": near, **({"position_error_1s": at(FAR_S)} if long_enough else {})}


def _contact_sound_lag(
    pairs: list, prefix_s: float, fps: float, sample_rate: int, rng: np.random.Generator
) -> Check:
    """Bounces seen in the rollout's own picture against onsets heard in its own sound."""
    usable = [pair for pair in pairs if _is_complete(pair) and pair[1].contacts_s is not None]
    if not usable:
        return {"skipped": "needs picture, sound and true contacts: real clips have none"}

    def events(clip: CheckClip) -> tuple[np.ndarray, np.ndarray]:
        seen_C = contacts_from_track(track_body(clip.video_THWC).positions_T2, fps=fps)  # pyright: ignore
        return seen_C[seen_C >= prefix_s], detect_onsets(clip.audio_N, sample_rate=sample_rate)  # pyright: ignore

    generated, true = ([events(pair[which]) for pair in usable] for which in (0, 1))
    other = [(seen, true[(index + 1) % len(true)][1]) for index, (seen, _) in enumerate(true)]
    seen_total = sum(len(seen) for seen, _ in generated)
    true_total = sum(int((truth.contacts_s >= prefix_s).sum()) for _, truth in usable)
    if seen_total < MIN_CONTACTS:
        return {
            "skipped": f"only {seen_total} bounces are seen in {len(usable)} rollouts (truth: {true_total}); "
            f"a lag needs {MIN_CONTACTS}",
        }

    def median_ms(chosen: list[tuple[np.ndarray, np.ndarray]]) -> float:
        """Median |lag|; a bounce without a sound counts as the whole window."""
        lag_C = np.concatenate([nearest_lags_s(*pair) for pair in chosen])
        return (
            1e3 * float(np.median(np.nan_to_num(np.abs(lag_C), nan=LAG_WINDOW_S)))
            if len(lag_C)
            else float("nan")
        )

    lag_C = np.concatenate([nearest_lags_s(*pair) for pair in generated])
    return judged(
        median_ms(generated),
        bootstrap_pooled_ci(
            len(generated), rng, statistic=lambda picks: median_ms([generated[index] for index in picks])
        ),
        median_ms(true),
        {"another_sound": median_ms(other) if len(true) > 1 else float("nan")},
        unit="ms",
        better="lower",
        signed_lag_ms=1e3 * mode_lag_s(np.concatenate([pairwise_lags_s(*pair) for pair in generated])),
        heard_share=float(np.isfinite(lag_C).mean()),
        contacts_seen=seen_total,
        contacts_in_truth=true_total,
        episodes=len(usable),
    )


def _onset_f1(pairs: list, prefix_s: float, sample_rate: int, rng: np.random.Generator) -> Check:
    """Onsets heard in the rollout against the true contacts, within 50 ms."""
    usable = [
        (rollout, truth)
        for rollout, truth in pairs
        if rollout.audio_N is not None and truth.audio_N is not None and truth.contacts_s is not None
    ]
    if not usable:
        return {"skipped": "needs sound and true contacts: real clips have none"}

    def onsets(clip: CheckClip) -> np.ndarray:
        onset_M = detect_onsets(clip.audio_N, sample_rate=sample_rate)  # pyright: ignore
        return onset_M[onset_M >= prefix_s]

    contacts = [merge_close(truth.contacts_s[truth.contacts_s >= prefix_s]) for _, truth in usable]
    if not sum(map(len, contacts)):
        return {"skipped": f"no true contact after the prefix in {len(usable)} episodes"}
    heard, true_heard = [onsets(rollout) for rollout, _ in usable], [onsets(truth) for _, truth in usable]
    num = len(usable)

    def counts(onsets_E: list[np.ndarray], shift: int) -> np.ndarray:
        return np.array([match_counts(onsets_E[i], contacts[(i + shift) % num]) for i in range(num)])

    own_E3, other_E3 = counts(heard, 0), counts(heard, 1)
    value, other = f1(*own_E3.sum(0)), f1(*other_E3.sum(0)) if num > 1 else float("nan")
    return judged(
        value,
        bootstrap_pooled_ci(num, rng, statistic=lambda picks: f1(*own_E3[picks].sum(0))),
        f1(*counts(true_heard, 0).sum(0)),
        {"another_sound": f1(*counts(true_heard, 1).sum(0)) if num > 1 else float("nan"), "silence": 0.0},
        unit="F1 within 50 ms",
        better="higher",
        own_minus_another=value - other,
        onsets_heard=int(own_E3[:, :2].sum()),
        contacts_in_truth=int(own_E3[:, [0, 2]].sum()),
        episodes=num,
    )


def _freeze(pairs: list, num_given: int, fps: float, rng: np.random.Generator) -> Check:
    """Frames that show no change. The first generated frame is compared with the last given one."""
    videos = [
        (rollout.video_THWC[num_given - 1 :], truth.video_THWC[num_given - 1 :])
        for rollout, truth in pairs
        if rollout.video_THWC is not None
        and truth.video_THWC is not None
        and len(rollout.video_THWC) > num_given
    ]
    if not videos:
        return {"skipped": "no picture was generated"}
    return judged_mean(
        [still_share(rollout) for rollout, _ in videos],
        [still_share(truth) for _, truth in videos],
        {"frozen_frame": [1.0]},
        rng,
        unit="share of frames",
        longest_freeze_s=max(longest_freeze_s(rollout, fps=fps) for rollout, _ in videos),
        longest_freeze_s_of_truth=max(longest_freeze_s(truth, fps=fps) for _, truth in videos),
        black_share=float(np.mean([black_share(rollout[1:]) for rollout, _ in videos])),
    )


def _colour_drift(pairs: list, num_given: int, rng: np.random.Generator) -> Check:
    videos = [
        (r.video_THWC, t.video_THWC)
        for r, t in pairs
        if r.video_THWC is not None and t.video_THWC is not None
    ]
    videos = [pair for pair in videos if min(map(len, pair)) > num_given]
    return _drift(videos, num_given, rng, measure=colour_drift, unit="of full scale", what="picture")


def _loudness_drift(pairs: list, num_given: int, rng: np.random.Generator) -> Check:
    sounds = [(r.audio_N, t.audio_N) for r, t in pairs if r.audio_N is not None and t.audio_N is not None]
    sounds = [pair for pair in sounds if min(map(len, pair)) > num_given]
    return _drift(sounds, num_given, rng, measure=loudness_drift_db, unit="dB", what="sound")


def _drift(
    media: list[tuple[np.ndarray, np.ndarray]],
    num_given: int,
    rng: np.random.Generator,
    *,
    measure: Callable[[np.ndarray, np.ndarray], float],
    unit: str,
    what: str,
) -> Check:
    """Given part of the truth against the generated part; the floor is how much the truth itself changes."""
    if not media:
        return {"skipped": f"no {what} was generated"}
    truths = [truth for _, truth in media]
    return judged_mean(
        [measure(truth[:num_given], rollout[num_given:]) for rollout, truth in media],
        [measure(truth[:num_given], truth[num_given:]) for truth in truths],
        {"unrelated_episode": [measure(a[:num_given], b[num_given:]) for a, b in pairwise(truths)]},
        rng,
        unit=unit,
    )


def _is_complete(pair: tuple[CheckClip, CheckClip]) -> bool:
    return all(clip.video_THWC is not None and clip.audio_N is not None for clip in pair)
