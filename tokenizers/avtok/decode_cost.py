"""What decoding costs, estimated from what a demux pass knows, so that plans can balance work.

A frame takes time for itself, for its pixels and for its bits; the constants of a codec were fitted to its
single-threaded FFmpeg 8.1 decoder on one core of a server CPU of 2023, with moving texture of 176x144 to
1280x720, clean and noisy: within 41 % of each measurement, 15 % at the median. Absolute times differ by
machine, so what is promised is their order and ratio.
"""

from __future__ import annotations

# seconds a frame, a million pixels, and a million bits
MEASURED: dict[str, tuple[float, float, float]] = {
    "h264": (1.6e-5, 1.1e-3, 2.4e-2),
    "hevc": (2.0e-5, 2.4e-3, 1.2e-2),
    "mpeg4": (2.7e-5, 8.2e-4, 1.8e-3),
    "mpeg2video": (2.0e-5, 1.0e-3, 1.0e-3),
    "vp8": (2.4e-5, 1.4e-3, 1.5e-2),
    "vp9": (6.6e-5, 2.5e-3, 2.0e-2),
    "av1": (1.3e-4, 2.4e-3, 4.8e-3),
    "mjpeg": (2.0e-5, 5.0e-4, 3.0e-3),
}
LIKE = {"mpeg1video": "mpeg2video", "h263": "mpeg4", "flv1": "mpeg4", "wmv2": "mpeg4", "prores": "mjpeg"}
UNKNOWN = MEASURED["vp9"]  # as dear as the dearest that was measured
SOUND_SAMPLE_S = 3e-8  # of one channel: AAC, MP3 and Vorbis alike


def decode_cost_s(
    codec: str, *, pixels: int, fps: float, mbit_s: float, sample_rate: int, channels: int
) -> float:
    """Seconds of one core that one second of a file takes. pixels: of one stored frame; fps 0: no picture."""
    frame_s, megapixel_s, megabit_s = MEASURED.get(LIKE.get(codec, codec), UNKNOWN)
    picture_s = fps * (frame_s + megapixel_s * pixels / 1e6) + megabit_s * mbit_s if fps else 0.0
    return picture_s + SOUND_SAMPLE_S * sample_rate * channels
