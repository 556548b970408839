"""What a check reports: a number, how sure it is, and what it must be compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.checks.bootstrap import bootstrap_ci
from worldmodel.worlds.truth import Truth

# E episodes, T frames, B bodies, H rows, W columns, C colours, N samples, 2 = (x, y) in box widths.

Check = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Scene:
    """What truly happens in a clip, from its first given frame on.

    visible_TB: share of a body that nothing hides. colors: a name for each body; empty where one body is what
    stands out. contacts_s: all times at which something is heard.
    """

    positions_TB2: np.ndarray
    visible_TB: np.ndarray
    mass_B: np.ndarray
    radius_B: np.ndarray
    contacts_s: np.ndarray
    materials: tuple[str, ...]
    colors: tuple[str, ...] = ()


def scene_of(truth: Truth) -> Scene | None:
    """What checks of motion need of a truth; None where no body moves.

    Colours of bounce_one come with the material, and its one body is found without them.
    """
    if not truth.materials:
        return None
    return Scene(
        positions_TB2=truth.positions_TK2,
        visible_TB=truth.visible_TK,
        mass_B=truth.mass_K,
        radius_B=truth.radius_K,
        contacts_s=truth.contact_times_s,
        materials=truth.materials,
        colors=() if truth.world == "bounce_one" else truth.colors,
    )


@dataclass(frozen=True, eq=False)
class CheckClip:
    """One clip from its first given frame on: uint8 RGB, mono samples, and the exact truth where known."""

    video_THWC: np.ndarray | None = None
    audio_N: np.ndarray | None = None
    scene: Scene | None = None


Pairs = list[tuple[CheckClip, CheckClip]]  # rollout, truth


def score(value: float, floor: float, baseline: float) -> float | None:
    """S, or None where floor and baseline coincide and nothing can be told."""
    if not all(map(math.isfinite, (value, floor, baseline))) or abs(baseline - floor) < 1e-9:
        return None
    return float(np.clip(1 - (value - floor) / (baseline - floor), 0, 1))


def judged(
    value: float,
    interval: tuple[float, float],
    floor: float,
    baselines: dict[str, float],
    *,
    unit: str,
    better: str,
    references: dict[str, float] | None = None,
    **details: Any,
) -> Check:
    """`baselines` need no model and bound the score; `references` are shown beside them only."""
    usable = {name: number for name, number in baselines.items() if math.isfinite(number)}
    best = (min if better == "lower" else max)(usable, key=usable.__getitem__) if usable else None
    return {
        "value": value,
        "ci_low": interval[0],
        "ci_high": interval[1],
        "floor": floor,
        "baselines": usable,
        "references": references or {},
        "scored_against": best,
        "score": None if best is None else score(value, floor, usable[best]),
        "unit": unit,
        "better": better,
        **details,
    }


def judged_mean(
    values_E: list[float],
    floors_E: list[float],
    baselines: dict[str, list[float]],
    rng: np.random.Generator,
    *,
    unit: str,
    **details: Any,
) -> Check:
    return judged(
        float(np.mean(values_E)),
        bootstrap_ci(np.array(values_E), rng, statistic=np.mean),
        float(np.mean(floors_E)),
        {name: float(np.mean(numbers)) if numbers else float("nan") for name, numbers in baselines.items()},
        unit=unit,
        better="lower",
        episodes=len(values_E),
        **details,
    )


def without_nan(value: Any) -> Any:
    """JSON has no NaN: what could not be measured is null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
