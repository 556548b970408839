"""Finds the flash and the click of a written file again: as this project reads it, and as others do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from avtok.decode import ClipError, DecodedClip, decode_clip
from avtok.reading.sound import mono
from benchmarks.makers.flash_click import LOUDNESS, PULSE_REACH_S, Case, Written, ricker, write_flash_click
from benchmarks.makers.flash_click_kinds import CONTAINERS

# T frames, N samples.

SIZE = (32, 32)
CUT_S = 1.5
CONTEXT_FRAMES, CONTEXT_S = 4, 0.25
WHITE_ABOVE = 128


@dataclass(frozen=True)
class Found:
    """When flash and click came back, in the file's seconds from its origin."""

    flash_s: float
    click_s: float


def cut_around(case: Case, written: Written) -> DecodedClip:
    """From the start up to behind the event, or a piece at a random place around an event deep within."""
    start_s, context_frames, context_samples = 0.0, 0, 0
    if case.event == "deep":
        before_s = np.random.default_rng(case.seed + 1).uniform(0.3, CUT_S - 0.3)
        start_s = round((written.click_s - before_s) * case.target_fps) / case.target_fps
        context_frames, context_samples = CONTEXT_FRAMES, round(CONTEXT_S * case.target_rate)
    return decode_clip(
        str(written.path),
        start_s=start_s,
        end_s=start_s + CUT_S if case.event == "deep" else written.click_s + 0.4,
        fps=case.target_fps,
        size=SIZE,
        sample_rate=case.target_rate,
        context_frames=context_frames,
        context_samples=context_samples,
    )


def found_in(clip: DecodedClip, *, fps: float, rate: int) -> Found:
    """ValueError where the cut has no flash or no click."""
    assert clip.video_THWC is not None
    assert clip.audio_N is not None
    white_T = clip.video_THWC.mean(axis=(1, 2, 3)) > WHITE_ABOVE
    if white_T.all() or not white_T.any():
        raise ValueError(f"{int(white_T.sum())} of {len(white_T)} pictures are white")
    flash_s = clip.start_s + (int(white_T.argmax()) - clip.context_frames) / fps
    return Found(flash_s, clip.start_s + click_index(clip.audio_N, rate) / rate - clip.context_samples / rate)


def click_index(audio_N: np.ndarray, rate: int) -> float:
    """Where the wavelet is centred, between samples: the top of a parabola through the correlation's peak.

    ValueError if less than half of the wavelet's strength is there.
    """
    reach = round(PULSE_REACH_S * rate)
    wavelet_N = ricker(np.arange(-reach, reach + 1) / rate)
    likeness_N = np.correlate(audio_N, wavelet_N, "same") / (wavelet_N @ wavelet_N)
    peak = int(likeness_N[1:-1].argmax()) + 1
    if likeness_N[peak] < LOUDNESS / 2:
        raise ValueError(
            f"the loudest click has {likeness_N[peak]:.3f} of full scale, {LOUDNESS} was written"
        )
    left, top, right = likeness_N[peak - 1 : peak + 2]
    return peak + float((left - right) / (left - 2 * top + right)) / 2


def nominal_found(path: Path) -> Found:
    """As loaders that count do: picture n at n / average rate, sample n at n / rate, each stream from 0."""
    _, white_T, rate_hz = _whole_picture(path)
    return Found(int(white_T.argmax()) / rate_hz, _counted_click_s(path))


def zero_based_found(path: Path) -> Found:
    """As loaders that let every stream begin at 0 do: a picture's timestamp minus that of the first."""
    times_s, white_T, _ = _whole_picture(path)
    return Found(float(times_s[white_T.argmax()] - times_s[0]), _counted_click_s(path))


def _whole_picture(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Times as shown, which of them are white, and the rate by the file's label."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate_hz = float(stream.average_rate or stream.guessed_rate or 30)
        shown = [(frame.time or 0.0, _is_white(frame)) for frame in container.decode(stream)]
    times, whites = zip(*sorted(shown), strict=True)
    return np.array(times), np.array(whites), rate_hz


def _is_white(frame: av.VideoFrame) -> bool:
    return bool(frame.reformat(width=16, height=16, format="gray").to_ndarray().mean() > WHITE_ABOVE)


def _counted_click_s(path: Path) -> float:
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    rate = frames[0].sample_rate
    return click_index(np.concatenate([mono(frame) for frame in frames]), rate) / rate


Loaders = Mapping[str, Callable[[Path], Found]]
LOADERS: Loaders = {"nominal": nominal_found, "zero_based": zero_based_found}


def measured(case: Case, folder: Path, *, loaders: Loaders = LOADERS) -> dict[str, Any]:
    """One case, written, read as this project does and as others do, and deleted. Errors are signed.

    reason: why nothing could be found, None if it could.
    """
    path = folder / f"{case.seed:04d}.{CONTAINERS[case.container].suffix}"
    written = write_flash_click(case, path)
    row: dict[str, Any] = {"name": case.name, "reason": None, "tick_s": written.tick_s}
    row |= {"heard_priming_s": written.heard_priming_s, "moved_by_muxer_s": written.moved_s}
    row |= {"target_fps": case.target_fps, "target_rate": case.target_rate}
    try:
        clip = cut_around(case, written)
        found = found_in(clip, fps=case.target_fps, rate=case.target_rate)
        row["picture_error_frames"] = (found.flash_s - written.flash_s) * case.target_fps
        row["sound_error_samples"] = (found.click_s - written.click_s) * case.target_rate
        clock_samples = written.tick_s / 2 * case.target_rate
        row["sound_error_beyond_clock_samples"] = max(0.0, abs(row["sound_error_samples"]) - clock_samples)
    except (ClipError, ValueError) as error:
        row["reason"] = str(error)
    for loader, find in loaders.items():
        try:
            found = find(path)
        except (FFmpegError, ValueError) as error:
            row[loader] = {"reason": str(error)}
            continue
        picture_ms, sound_ms = (
            1e3 * (found.flash_s - written.flash_s),
            1e3 * (found.click_s - written.click_s),
        )
        row[loader] = {"picture_error_ms": picture_ms, "sound_error_ms": sound_ms}
    path.unlink()
    return row
