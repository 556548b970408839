"""Shots: PySceneDetect finds where they change, and each becomes a row of its own."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Any

import numpy as np

from ray_jobs.actions import SLACK_FRAMES
from ray_jobs.errors import UserError

# T frames, H W pixels, C channels.

TICK = Fraction(1, 1_000_000)
DARK_LEVEL = 12.0  # of 255, the mean of a picture: ThresholdDetector's own
NEAR_CUT_S = 1.0  # a fade that a cut has marked already is not marked again
NEEDS_EXTRA = "{what} needs {library}: pip install 'worldmodel[filters]'"


class ShotFinder:
    """Fed with small pictures and their times; finds cuts (AdaptiveDetector) and fades through black."""

    def __init__(self) -> None:
        try:
            from scenedetect.common import FrameTimecode, Timecode
            from scenedetect.detectors import AdaptiveDetector, ThresholdDetector
        except ImportError as error:
            raise UserError(NEEDS_EXTRA.format(what="--shots", library="PySceneDetect")) from error
        self._timecode = lambda time_s: FrameTimecode(Timecode(round(time_s / TICK), TICK), fps=25.0)
        self._cuts = AdaptiveDetector(min_scene_len=0)
        self._fades = ThresholdDetector(min_scene_len=0)
        self._cut_s: list[float] = []
        self._fade_s: list[float] = []
        self._last_s: float | None = None
        self._was_dark = False
        self._dark_s: set[float] = set()  # frames that are as dark as the one before: no cut shows there

    def add(self, time_T: np.ndarray, image_THWC: np.ndarray) -> None:
        for time_s, image_HWC in zip(time_T, image_THWC, strict=True):
            if self._last_s is not None and time_s <= self._last_s:
                continue
            self._last_s = max(0.0, float(time_s))
            is_dark = float(image_HWC.mean()) < DARK_LEVEL
            if is_dark and self._was_dark:
                self._dark_s.add(round(self._last_s, 6))
            self._was_dark = is_dark
            at, bgr_HWC = self._timecode(self._last_s), np.ascontiguousarray(image_HWC[..., ::-1])
            self._cut_s += [cut.seconds for cut in self._cuts.process_frame(at, bgr_HWC)]
            self._fade_s += [cut.seconds for cut in self._fades.process_frame(at, bgr_HWC)]

    def finish(self) -> list[float]:
        """Times at which a new shot begins, rising."""
        if self._last_s is None:
            return []
        at = self._timecode(self._last_s)
        self._cut_s += [cut.seconds for cut in self._cuts.post_process(at)]
        self._fade_s += [cut.seconds for cut in self._fades.post_process(at)]
        cuts_s = [cut_s for cut_s in self._cut_s if round(cut_s, 6) not in self._dark_s]
        fades_s = [fade_s for fade_s in self._fade_s if all(abs(fade_s - s) > NEAR_CUT_S for s in cuts_s)]
        return sorted({*cuts_s, *fades_s})


def require_shots() -> None:
    """UserError before hours of work, not in the middle of them."""
    ShotFinder()


def shots_of(
    row: dict[str, Any], cuts_s: list[float], *, min_shot_s: float
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of the shots of one row, and those left out because they are too short."""
    inside_s = [cut_s for cut_s in cuts_s if row["start_s"] < cut_s < row["end_s"]]
    if not inside_s:
        return [row], []
    edges_s = [row["start_s"], *inside_s, row["end_s"]]
    kept: list[dict[str, Any]] = []
    short: list[dict[str, str]] = []
    for start_s, end_s in pairwise(edges_s):
        if end_s - start_s < min_shot_s - 1e-9:
            reason = (
                f"shot of {end_s - start_s:.2f} s at {start_s:.2f} s: shorter than min_shot_s={min_shot_s:g}"
            )
            short.append({"uri": row["uri"], "reason": reason})
        else:
            kept.append(shot(row, start_s, end_s))
    return kept, short


def shot(row: dict[str, Any], start_s: float, end_s: float) -> dict[str, Any]:
    """The row between two times of its file, with the cues and the actions of that span."""
    own = row | {"start_s": start_s, "end_s": end_s}
    cues = json.loads(row["speech_json"]) if row["speech_json"] else []
    if any("start" in cue for cue in cues):
        said = [cue for cue in cues if "start" not in cue or start_s <= float(cue["start"]) < end_s]
        own["speech_json"] = json.dumps(said, ensure_ascii=False) if said else ""
        own["transcript"] = " ".join(cue["text"] for cue in said)
    if row["actions"]:
        first, last = (_frame(at_s, row) - _frame(row["start_s"], row) for at_s in (start_s, end_s))
        told = json.loads(row["actions"])[first : last if end_s < row["end_s"] else None]
        own["actions"] = json.dumps(told) if told else ""
    return own


def _frame(time_s: float, row: dict[str, Any]) -> int:
    return floor(time_s * row["fps"] + SLACK_FRAMES)
