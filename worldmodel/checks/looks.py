"""Checks that need no truth of a simulator: standing still, and drift of colour and loudness."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from worldmodel.checks.drift import colour_drift, loudness_drift_db
from worldmodel.checks.freeze import black_share, longest_freeze_s, still_share
from worldmodel.checks.result import Check, Pairs, judged_mean

# T frames, N samples.


def freeze(pairs: Pairs, num_given: int, fps: float, rng: np.random.Generator) -> Check:
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


def colour_drift_check(pairs: Pairs, num_given: int, rng: np.random.Generator) -> Check:
    videos = [
        (r.video_THWC, t.video_THWC)
        for r, t in pairs
        if r.video_THWC is not None and t.video_THWC is not None
    ]
    videos = [pair for pair in videos if min(map(len, pair)) > num_given]
    return _drift(videos, num_given, rng, measure=colour_drift, unit="of full scale", what="picture")


def loudness_drift_check(pairs: Pairs, num_given: int, rng: np.random.Generator) -> Check:
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
