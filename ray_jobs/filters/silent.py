"""Clips without sound, or hardly any."""

from __future__ import annotations

from typing import Any

import numpy as np

from ray_jobs.filters.look import Look

QUIET_DBFS = -60.0  # avtok.reading.levels.QUIET_DBFS
MOST_SILENT = 0.98  # of its tenths of a second


def is_silent(row: dict[str, Any], look: Look | None) -> str:
    """By what was heard in the span where there is a look, else by the facts of the file."""
    if not row["has_sound"]:
        return "silent: no sound, or none above silence"
    fraction = row["silent_fraction"]
    if look is not None and look.sound_SB is not None and len(look.sound_SB):
        power_S = (10.0 ** (look.sound_SB.astype(np.float64) / 10)).sum(1) / 2  # a sine of level 0 dB
        fraction = float((10 * np.log10(power_S) < QUIET_DBFS).mean())
    return f"silent: {fraction:.0%} of it lies below {QUIET_DBFS:.0f} dBFS" if fraction >= MOST_SILENT else ""
