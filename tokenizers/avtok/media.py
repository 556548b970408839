"""What reading media gives: facts of a file, a decoded cut, and the one error. Imports without av."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# T frames, H W pixels, C channels, N samples.


class ClipError(Exception):
    """A clip that cannot be used; the message is one line that says why."""


@dataclass(frozen=True)
class Limits:
    """What one untrusted file may take before its decoder is killed; the same fields as `data.limits`."""

    seconds: float = 120.0
    memory_mb: int = 4096
    max_pixels: int = 8192 * 4352
    max_file_gb: float = 64.0
    max_streams: int = 64


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. duration_s is the picture's, or the sound's without a picture; 0 for an image.

    has_sound: louder than silence, not merely a track. reason: what could not be used, empty if nothing.
    Stamps (`*_start_s`, `*_end_s`) are the file's own; origin_s is the time 0 of every cut. None: not known.
    """

    uri: str
    has_video: bool
    has_audio: bool
    has_sound: bool
    duration_s: float
    width: int
    height: int
    fps: float
    sample_rate: int
    origin_s: float
    reason: str
    # the file
    container: str = ""
    bitrate_kbps: float | None = None
    num_video_streams: int = 0
    num_audio_streams: int = 0
    num_other_streams: int = 0
    video_stream: int | None = None  # index of the one that is read
    audio_stream: int | None = None
    decode_cost_s: float = 0.0  # seconds of one core to decode one second of it
    # its picture
    video_codec: str = ""
    pixel_format: str = ""
    bit_depth: int = 0
    color_primaries: str = ""
    color_transfer: str = ""
    color_range: str = ""
    is_hdr: bool = False
    rotation_deg: int = 0  # clockwise, to stand upright; then mirrored
    is_mirrored: bool = False
    is_interlaced: bool = False
    num_frames: int = 0
    num_keyframes: int = 0
    longest_gop: int = 0  # frames from one key frame to the next
    video_start_s: float | None = None
    video_end_s: float | None = None
    is_vfr: bool = False
    min_frame_s: float = 0.0
    max_frame_s: float = 0.0
    # its sound
    audio_codec: str = ""
    channels: int = 0
    audio_start_s: float | None = None
    audio_end_s: float | None = None
    num_gaps: int = 0
    missing_s: float = 0.0  # of sound, in those gaps
    loudness_lufs: float | None = None
    peak_dbfs: float | None = None
    rms_dbfs: float | None = None
    silent_fraction: float = 1.0
    # both: sound minus picture
    av_start_s: float | None = None
    av_end_s: float | None = None
    clock_drift_s: float = 0.0
    drift_s: float = 0.0


@dataclass(frozen=True)
class DecodedClip:
    """One cut: uint8 RGB frames and float32 mono samples in [-1, 1], each with its left context in front."""

    video_THWC: np.ndarray | None
    audio_N: np.ndarray | None
    context_frames: int
    context_samples: int
    start_s: float
    end_s: float
