"""Does a clip say what its prompt says, and does the mouth go with it? Needs worldmodel[speech]."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldmodel.checks.bootstrap import bootstrap_ci, bootstrap_pooled_ci
from worldmodel.checks.lips import lip_fit, lip_offset_ms
from worldmodel.checks.of_prompts import Prompted
from worldmodel.checks.result import Check, CheckClip, judged
from worldmodel.worlds.recognise import transcribe, word_error_rate

# E episodes, L lags.


def speech_checks(prompted: Prompted, *, fps: float, sample_rate: int, seed: int = 0) -> dict[str, Check]:
    """word_error_rate and lip_offset of clips of world `talker`; NaN where nothing opens or sounds. What a
    model does not make is not asked about."""
    rng = np.random.default_rng(seed)
    checks: dict[str, Check] = {}
    if prompted.makes("audio"):
        checks["word_error_rate"] = _word_error(prompted, sample_rate, rng)
    if prompted.makes("audio") and prompted.makes("video"):
        checks["lip_offset"] = _lips(prompted, fps, sample_rate, rng)
    return checks


def _word_error(prompted: Prompted, sample_rate: int, rng: np.random.Generator) -> Check:
    """What a recogniser with GRID's closed grammar hears against what was to be said. The floor is what it
    hears in the true clips through the codec, the baseline is another episode's sentence."""
    said = [truth.transcript for truth in prompted.truths]
    heard, heard_of_codec = (
        [transcribe(np.asarray(clip.audio_N), sample_rate) for clip in clips]
        for clips in (prompted.generated, prompted.codec)
    )
    others = [*said[1:], *said[:1]]

    def pooled(picks_E: np.ndarray) -> float:
        return word_error_rate([said[i] for i in picks_E], [heard[i] for i in picks_E])

    return judged(
        word_error_rate(said, heard),
        bootstrap_pooled_ci(len(said), rng, statistic=pooled),
        word_error_rate(said, heard_of_codec),
        {"another_sentence": word_error_rate(others, heard)},
        unit="of words",
        better="lower",
        episodes=len(said),
        said_and_heard=[list(pair) for pair in zip(said, heard, strict=True)],
    )


def _lips(prompted: Prompted, fps: float, sample_rate: int, rng: np.random.Generator) -> Check:
    """How much later the sound is than in true clips, whose mouths open a little before they are heard; and
    how well loudness follows the mouth at that shift, beside the true clips and another clip's voice."""

    def pairs(clips: list[CheckClip], turn: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
        sounds = [np.asarray(clip.audio_N) for clip in clips]
        pictures = [np.asarray(clip.video_THWC) for clip in clips]
        return list(zip(pictures, [*sounds[turn:], *sounds[:turn]], strict=True))

    measured: dict[str, Any] = {}
    for name, chosen in (
        ("generated", pairs(prompted.generated)),
        ("codec", pairs(prompted.codec)),
        ("another_voice", pairs(prompted.generated, 1)),
    ):
        measured[name] = lip_offset_ms(chosen, fps=fps, sample_rate=sample_rate)
    lags_L, fit_EL = lip_fit(pairs(prompted.generated), fps=fps, sample_rate=sample_rate)
    fit_EL = fit_EL[np.isfinite(fit_EL).all(axis=1)]
    bias_ms = measured["codec"][0]

    def best_ms(fit_REL: np.ndarray, axis: int) -> np.ndarray:
        return 1e3 * lags_L[fit_REL.mean(axis=axis).argmax(-1)] - bias_ms

    return {
        "value": measured["generated"][0] - bias_ms,
        **dict(zip(("ci_low", "ci_high"), bootstrap_ci(fit_EL, rng, statistic=best_ms), strict=True)),
        "unit": "ms",
        "offset_of_truth_ms": bias_ms,
        "fit": measured["generated"][1],
        "fit_of_truth": measured["codec"][1],
        "fit_of_another_voice": measured["another_voice"][1],
        "episodes": len(fit_EL),
    }
