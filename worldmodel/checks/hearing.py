"""Checks that listen: does a bounce sound when it is seen, when it truly happens, and like its material?"""

from __future__ import annotations

import numpy as np

from worldmodel.checks.bootstrap import bootstrap_pooled_ci
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
from worldmodel.checks.result import Check, CheckClip, Pairs, Scene, judged
from worldmodel.checks.timbre import heard_materials
from worldmodel.checks.track_many import track_bodies

# E episodes, N samples, C contacts, M onsets.

MIN_CONTACTS = 5  # fewer say nothing about a lag


def contact_sound_lag(
    pairs: Pairs, prefix_s: float, fps: float, sample_rate: int, rng: np.random.Generator
) -> Check:
    """Bounces seen in the rollout's own picture against onsets heard in its own sound."""
    usable = [pair for pair in pairs if _is_complete(pair) and _has_one_body(pair[1].scene)]
    if not usable:
        return {"skipped": "needs picture, sound and the true contacts of one body: real clips have none"}

    def events(clip: CheckClip, colors: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        seen_C = contacts_from_track(track_bodies(clip.video_THWC, colors)[:, 0], fps=fps)  # pyright: ignore
        return seen_C[seen_C >= prefix_s], detect_onsets(clip.audio_N, sample_rate=sample_rate)  # pyright: ignore

    generated, true = (
        [events(pair[which], pair[1].scene.colors) for pair in usable]  # pyright: ignore
        for which in (0, 1)
    )
    other = [(seen, true[(index + 1) % len(true)][1]) for index, (seen, _) in enumerate(true)]
    seen_total = sum(len(seen) for seen, _ in generated)
    true_total = sum(int((_contacts_s(truth) >= prefix_s).sum()) for _, truth in usable)
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


def onset_f1(pairs: Pairs, prefix_s: float, sample_rate: int, rng: np.random.Generator) -> Check:
    """Onsets heard in the rollout against true contacts, within 50 ms: its own, and those of other clips."""
    usable = [
        (rollout, truth)
        for rollout, truth in pairs
        if rollout.audio_N is not None and truth.audio_N is not None and truth.scene is not None
    ]
    if not usable:
        return {"skipped": "needs sound and true contacts: real clips have none"}

    def onsets(clip: CheckClip) -> np.ndarray:
        onset_M = detect_onsets(clip.audio_N, sample_rate=sample_rate)  # pyright: ignore
        return onset_M[onset_M >= prefix_s]

    contacts = [merge_close(_contacts_s(truth)[_contacts_s(truth) >= prefix_s]) for _, truth in usable]
    if not sum(map(len, contacts)):
        return {"skipped": f"no true contact after the prefix in {len(usable)} episodes"}
    heard, true_heard = [onsets(rollout) for rollout, _ in usable], [onsets(truth) for _, truth in usable]
    num = len(usable)

    def counts(onsets_E: list[np.ndarray], shift: int) -> np.ndarray:
        return np.array([match_counts(onsets_E[i], contacts[(i + shift) % num]) for i in range(num)])

    def counts_of_others(onsets_E: list[np.ndarray]) -> np.ndarray:
        """Against the contacts of every other episode: one of them alone is a noisy baseline."""
        return sum((counts(onsets_E, shift) for shift in range(1, num)), np.zeros((num, 3), dtype=int))

    own_E3, other_E3 = counts(heard, 0), counts_of_others(heard)
    value, other = f1(*own_E3.sum(0)), f1(*other_E3.sum(0))  # NaN where there is no other

    def gain(picks: np.ndarray) -> float:
        return f1(*own_E3[picks].sum(0)) - f1(*other_E3[picks].sum(0))

    gain_low, gain_high = bootstrap_pooled_ci(num, rng, statistic=gain, resamples=1000)
    return judged(
        value,
        bootstrap_pooled_ci(num, rng, statistic=lambda picks: f1(*own_E3[picks].sum(0))),
        f1(*counts(true_heard, 0).sum(0)),
        {"another_sound": f1(*counts_of_others(true_heard).sum(0)), "silence": 0.0},
        unit="F1 within 50 ms",
        better="higher",
        own_minus_another=value - other,
        own_minus_another_ci_low=gain_low if num > 1 else float("nan"),
        own_minus_another_ci_high=gain_high if num > 1 else float("nan"),
        onsets_heard=int(own_E3[:, :2].sum()),
        contacts_in_truth=int(own_E3[:, [0, 2]].sum()),
        episodes=num,
    )


def sound_identity(pairs: Pairs, prefix_s: float, sample_rate: int, rng: np.random.Generator) -> Check:
    """Does each sound after the prefix ring at the pitch of a material that the clip holds?"""
    usable = [
        (rollout, truth)
        for rollout, truth in pairs
        if rollout.audio_N is not None and truth.audio_N is not None and truth.scene is not None
    ]
    if not usable:
        return {"skipped": "needs sound and known materials: real clips have none"}

    def hits(clip: CheckClip, materials: tuple[str, ...]) -> tuple[int, int]:
        heard = heard_materials(clip.audio_N, sample_rate=sample_rate, from_s=prefix_s)  # pyright: ignore
        return sum(name in materials for name in heard), len(heard)

    def counts(which: int, shift: int) -> np.ndarray:
        num = len(usable)
        return np.array(
            [
                hits(pair[which], usable[(index + shift) % num][1].scene.materials)  # pyright: ignore
                for index, pair in enumerate(usable)
            ]
        )

    def share(counts_E2: np.ndarray) -> float:
        right, total = counts_E2.sum(0)
        return float(right / total) if total else float("nan")

    own_E2, true_E2 = counts(0, 0), counts(1, 0)
    if own_E2[:, 1].sum() < MIN_CONTACTS:
        return {
            "skipped": f"only {own_E2[:, 1].sum()} sounds in {len(usable)} rollouts; it needs {MIN_CONTACTS}"
        }
    return judged(
        share(own_E2),
        bootstrap_pooled_ci(len(usable), rng, statistic=lambda picks: share(own_E2[picks])),
        share(true_E2),
        {"another_clip": share(counts(1, 1)) if len(usable) > 1 else float("nan")},
        unit="share of sounds",
        better="higher",
        sounds=int(own_E2[:, 1].sum()),
        sounds_in_truth=int(true_E2[:, 1].sum()),
        episodes=len(usable),
    )


def _has_one_body(scene: Scene | None) -> bool:
    """With several, a kink in one path may be a meeting of two: whose sound it is cannot be told."""
    return scene is not None and scene.positions_TB2.shape[1] == 1


def _contacts_s(clip: CheckClip) -> np.ndarray:
    return np.zeros(0) if clip.scene is None else clip.scene.contacts_s


def _is_complete(pair: tuple[CheckClip, CheckClip]) -> bool:
    return all(clip.video_THWC is not None and clip.audio_N is not None for clip in pair)
