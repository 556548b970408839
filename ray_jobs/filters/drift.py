"""Sound and picture that part over the file."""

from __future__ import annotations

from typing import Any


def drifts(row: dict[str, Any], *, max_drift_s: float) -> str:
    if row["drift_s"] <= max_drift_s:
        return ""
    if abs(row["clock_drift_s"]) >= row["drift_s"] - 1e-9:
        why = f"the sound's stamps run {row['clock_drift_s']:+.3f} s against its samples"
    else:
        ends = f"{row['av_start_s']:+.3f} s at the start, {row['av_end_s']:+.3f} s at the end"
        why = f"sound minus picture is {ends}"
    return f"drifts by {row['drift_s']:.3f} s: {why}; max_drift_s={max_drift_s:g}"
