"""All checks of prompts of one world."""

from __future__ import annotations

from typing import Any

from worldmodel.checks.follow import prompt_following
from worldmodel.checks.of_prompts import Prompted
from worldmodel.checks.result import without_nan
from worldmodel.checks.speaking import speech_checks

WORLDS = ("bounce", "talker")  # whose captions say enough to be held against a clip


def run_prompt_checks(
    prompted: Prompted, *, world: str, fps: float, sample_rate: int, seed: int = 0
) -> dict[str, Any]:
    """{"checks": name -> value, interval, the codec's own figure and another prompt's, "episodes"}."""
    if world == "talker":
        checks = speech_checks(prompted, fps=fps, sample_rate=sample_rate, seed=seed)
    else:
        checks = {"prompt_following": prompt_following(prompted, sample_rate=sample_rate, seed=seed)}
    return without_nan({"world": world, "episodes": len(prompted.truths), "checks": checks})
