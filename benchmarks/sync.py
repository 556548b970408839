"""Flash and click come back at their time from every kind of file; what loaders that count make of them.

Real files are written over containers, codecs, frame rates (also variable ones), sample rates, layouts,
offsets of the sound, late starts and priming, in a covering design, and cut by presentation times: half of
them at a random place deep in the file. The flash is looked for in the frames of the cut, the click by
cross-correlation with the wavelet that was written, to a few hundredths of a sample, whatever the codec did.

Prediction: no picture is off by more than one frame of the cut, and no click by more than one sample beyond
half a tick of the container's clock (of the sound's samples, where stamps count those: a start of 0.35 s lies
between two samples at 22050 Hz, and FFmpeg rounds it). Loaders that number frames by the average rate, or
start each stream at 0, are off by the offset of the streams: up to a second here.

A reader is held to what a file says. Run-in of an encoder that a container has no words for (transport and
program streams, FLV, ASF, tracks of MP4 that start late, fragments) is heard as silence, so that the origin
is earlier by a constant of the codec; in AVI the click is late by it, and the pictures behind the first by as
many whole ones. `raw` says both of every case, as heard_priming_s and moved_by_muxer_s.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.makers.flash_click_cases import family
from benchmarks.makers.flash_click_found import LOADERS, measured
from ray_jobs.bench import Measured

SMOKE_EVERY = 12
LOST = 1e9  # the error of a case in which flash or click was not found


def run(smoke: bool) -> Measured:
    cases = family()[:: SMOKE_EVERY if smoke else 1]
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(case, Path(folder)) for case in cases]
    lost = [f"{row['name']}: {row['reason']}" for row in rows if row["reason"]]
    figures = {
        "cases": len(rows),
        "max_picture_error_frames": _most(rows, "picture_error_frames"),
        "max_sound_error_beyond_clock_samples": _most(rows, "sound_error_beyond_clock_samples"),
        "lost": len(lost),
    }
    loaders = {name: _of_loader([row[name] for row in rows]) for name in LOADERS}
    for name, errors in loaders.items():
        figures |= {f"{name}_{key}": value for key, value in errors.items()}
    return Measured(
        figures=figures,
        raw=rows,
        n=len(rows),
        baseline=loaders,
        config=json.dumps([asdict(case) for case in cases], indent=1) + "\n",
        log="\n".join(lost) + "\n",
    )


def _most(rows: Sequence[dict[str, Any]], key: str) -> float:
    return max(abs(row.get(key, LOST)) for row in rows)


def _of_loader(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Errors of one loader in the cases that it could read; drift is the sound's against the picture's."""
    read = [row for row in rows if "reason" not in row]
    errors: dict[str, float] = {"unread": len(rows) - len(read)}
    for stream in ("picture", "sound"):
        sizes_ms = [abs(row[f"{stream}_error_ms"]) for row in read]
        errors |= {f"max_{stream}_error_ms": max(sizes_ms), f"median_{stream}_error_ms": median(sizes_ms)}
    drifts_ms = [abs(row["sound_error_ms"] - row["picture_error_ms"]) for row in read]
    return errors | {"max_drift_ms": max(drifts_ms), "median_drift_ms": median(drifts_ms)}
