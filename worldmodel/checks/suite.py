"""All checks over pairs of rollout and truth: each number with its floor, its baselines and an interval.

floor: the same measurement on the truth itself. baseline: what needs no model, such as a frozen frame.
score S = clip(1 - (value - floor) / (baseline - floor), 0, 1): 1 equals the truth, 0 the best baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.checks.hearing import contact_sound_lag, onset_f1, sound_identity
from worldmodel.checks.looks import colour_drift_check, freeze, loudness_drift_check
from worldmodel.checks.motion import energy_drift, permanence, position_checks
from worldmodel.checks.result import CheckClip, without_nan


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
    num_given = round(prefix_s * fps)
    rng = np.random.default_rng(seed)
    checks = {
        **position_checks(pairs, num_given, fps, rng),
        "energy_drift": energy_drift(pairs, num_given, fps, rng),
        "permanence": permanence(pairs, num_given, rng),
        "contact_sound_lag": contact_sound_lag(pairs, prefix_s, fps, sample_rate, rng),
        "onset_f1": onset_f1(pairs, prefix_s, sample_rate, rng),
        "sound_identity": sound_identity(pairs, prefix_s, sample_rate, rng),
        "freeze": freeze(pairs, num_given, fps, rng),
        "colour_drift": colour_drift_check(pairs, num_given, rng),
        "loudness_drift": loudness_drift_check(pairs, round(prefix_s * sample_rate), rng),
    }
    position = checks["position_error"]
    over_frozen = None
    if "skipped" not in position and position["baselines"]["frozen_frame"] > 0:
        over_frozen = position["value"] / position["baselines"]["frozen_frame"]
    result = {
        "episodes": len(pairs),
        "prefix_s": prefix_s,
        "position_error_025s_over_frozen": over_frozen,
        "onset_f1_gain_ci_low": checks["onset_f1"].get("own_minus_another_ci_low"),
        "checks": checks,
    }
    return without_nan(result)
