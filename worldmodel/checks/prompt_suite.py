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


def prompt_facts(found: dict[str, Any]) -> dict[str, str]:
    """A line of the model card for each check, with what it stands beside."""
    facts, checks = {}, found["checks"]
    if words := checks.get("word_error_rate"):
        facts["word error rate"] = (
            f"{words['value']:.3g} of words ({words['ci_low']:.3g} to {words['ci_high']:.3g}; codec alone "
            f"{words['floor']:.3g}, another sentence {words['baselines']['another_sentence']:.3g})"
        )
    if lips := checks.get("lip_offset"):
        facts["lip offset"] = (
            f"{lips['value']:.3g} ms ({lips['ci_low']:.3g} to {lips['ci_high']:.3g}); fit {lips['fit']:.3g} "
            f"(true clips {lips['fit_of_truth']:.3g}, another voice {lips['fit_of_another_voice']:.3g})"
        )
    for name, factor in checks.get("prompt_following", {}).get("factors", {}).items():
        facts[f"{name} as prompted"] = (
            f"{factor['accuracy']:.3g} ({factor['ci_low']:.3g} to {factor['ci_high']:.3g}; chance "
            f"{factor['chance']:.3g}, codec alone {factor['codec']:.3g})"
        )
    return facts
