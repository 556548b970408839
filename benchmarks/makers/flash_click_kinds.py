"""What a flash-and-click file may be made of, what goes with what, and what containers cannot say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

# H W pixels.

STEREO_AT_MOST, SURROUND_AT_MOST = ("mono", "stereo"), ("mono", "stereo", "5.1")
LAYOUTS = {"mono": "mono", "stereo": "stereo", "5.1": "5.1", "16": "hexadecagonal"}
SAMPLE_RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 192000)
UP_TO_48 = SAMPLE_RATES[:8]
OFFSETS_S = (-1.0, -0.5, -0.02, 0.0, 0.02, 0.35, 0.7, 1.0)


@dataclass(frozen=True)
class VideoKind:
    encoder: str
    pixel_format: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (48, 64)
    steady_only: bool = False  # the bitstream knows a few standard rates only


@dataclass(frozen=True)
class SoundKind:
    """priming: samples that FFmpeg's encoder puts in front; priming_rate: their rate, if not the sound's."""

    encoder: str
    sample_rates: tuple[int, ...] = SAMPLE_RATES
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    priming: int = 0
    priming_rate: int = 0
    options: dict[str, str] = field(default_factory=dict)
    bits_per_sample: int = 0
    most_bits_per_s: int = 10**9


@dataclass(frozen=True)
class ContainerKind:
    """tick_s: what presented times of the sound are rounded to.

    counts_frames: pictures have numbers, not times. starts: times at which a file can begin, offsets: by how
    much the sound can start later. heard: sound codecs whose priming no reader can know, so that it is heard.
    movie_hz: an empty edit in front of a track is cut down to this clock, and the priming of a track with one
    is heard.
    """

    suffix: str
    muxer: str
    video: tuple[str, ...]
    sound: tuple[str, ...]
    tick_s: float
    heard: tuple[str, ...] = ()
    counts_frames: bool = False
    starts: tuple[float, ...] = (0.0, 10.0)
    offsets: tuple[float, ...] = OFFSETS_S
    movie_hz: int = 0
    options: dict[str, str] = field(default_factory=dict)


_X264 = {"preset": "ultrafast", "g": "12"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1:keyint=12"}
_VPX = {"deadline": "realtime", "cpu-used": "8", "g": "12"}
_AV1 = {"preset": "12", "svtav1-params": "lp=1:keyint=12"}
_B = {"g": "12", "bf": "2"}

VIDEO_CODECS = {
    "h264": VideoKind("libx264", options={**_X264, "bf": "0"}),
    "h264b": VideoKind("libx264", options={**_X264, "bf": "3"}),
    "hevc": VideoKind("libx265", options=_X265),
    "vp8": VideoKind("libvpx", options=_VPX),
    "vp9": VideoKind("libvpx-vp9", options=_VPX),
    "av1": VideoKind("libsvtav1", options=_AV1, size=(64, 64)),
    "mpeg4": VideoKind("mpeg4", options={"g": "12"}),
    "mpeg4b": VideoKind("mpeg4", options=_B),
    "mpeg1": VideoKind("mpeg1video", options=_B, steady_only=True),
    "mpeg2": VideoKind("mpeg2video", options=_B, steady_only=True),
    "mjpeg": VideoKind("mjpeg", "yuvj420p"),
    "flv1": VideoKind("flv", options={"g": "12"}),
    "h263": VideoKind("h263", options={"g": "12"}, size=(96, 128)),
    "wmv2": VideoKind("wmv2", options={"g": "12"}),
    "prores": VideoKind("prores_ks", "yuv422p10le"),
    "ffv1": VideoKind("ffv1"),
}
SOUND_CODECS = {
    # no noise substitution, as it is random
    "aac": SoundKind("aac", SAMPLE_RATES[:9], SURROUND_AT_MOST, 1024, 0, {"aac_pns": "0"}, 6, 400_000),
    "mp3": SoundKind("libmp3lame", UP_TO_48, STEREO_AT_MOST, 1105),
    "opus": SoundKind("libopus", (8000, 16000, 24000, 48000), SURROUND_AT_MOST, 312, 48000, {}, 4, 300_000),
    "vorbis": SoundKind("vorbis", SAMPLE_RATES[:8], ("stereo",), 0, 0, {"strict": "-2"}),
    "flac": SoundKind("flac", SAMPLE_RATES, SURROUND_AT_MOST),
    "alac": SoundKind("alac", SAMPLE_RATES, SURROUND_AT_MOST),
    "ac3": SoundKind("ac3", (32000, 44100, 48000), SURROUND_AT_MOST, 256),
    "eac3": SoundKind("eac3", (32000, 44100, 48000), SURROUND_AT_MOST, 256),
    "mp2": SoundKind("mp2", (16000, 22050, 24000, 32000, 44100, 48000), STEREO_AT_MOST, 481),
    "pcm8": SoundKind("pcm_u8"),
    "pcm16": SoundKind("pcm_s16le"),
    "pcm24": SoundKind("pcm_s24le"),
    "pcm32": SoundKind("pcm_s32le"),
    "float": SoundKind("pcm_f32le"),
    "double": SoundKind("pcm_f64le"),
    "wma": SoundKind("wmav2", UP_TO_48, STEREO_AT_MOST, 0, 0, {}, 4, 192_000),
}
_MATROSKA = tuple(name for name in VIDEO_CODECS if name not in ("flv1", "h263", "wmv2"))
_PCM = ("pcm16", "pcm24", "pcm32", "float", "double")
_MODERN = ("h264", "h264b", "hevc", "vp9", "av1", "mpeg4", "mpeg4b", "mpeg2", "mjpeg")
_QUICKTIME = tuple(name for name in _MODERN if name not in ("vp9", "av1"))
_MP4_SOUND = ("aac", "mp3", "opus", "flac", "alac", "ac3", "eac3", "pcm16", "pcm24", "float")

_HEARD = ("aac", "mp3", "mp2", "ac3", "eac3")

CONTAINERS = {
    "mp4": ContainerKind("mp4", "mp4", _MODERN, _MP4_SOUND, 0, movie_hz=1000),
    "mp4fine": ContainerKind(
        "mp4", "mp4", _MODERN, _MP4_SOUND, 0, movie_hz=96000, options={"movie_timescale": "96000"}
    ),
    "fmp4": ContainerKind(
        *("mp4", "mp4", _MODERN, _MP4_SOUND, 0),
        heard=("ac3", "eac3", "mp3"),  # FFmpeg's reader does not cut them off in fragments
        movie_hz=1000,
        options={"movflags": "frag_keyframe+empty_moov+default_base_moof+delay_moov"},
    ),
    "mov": ContainerKind(
        "mov", "mov", (*_QUICKTIME, "prores"), ("aac", "mp3", "alac", *_PCM), 0, movie_hz=1000
    ),
    "3gp": ContainerKind("3gp", "3gp", ("h263", "h264", "mpeg4"), ("aac",), 0, movie_hz=1000),
    "mkv": ContainerKind("mkv", "matroska", _MATROSKA, tuple(SOUND_CODECS)[:-1], 1e-3),
    "webm": ContainerKind("webm", "webm", ("vp8", "vp9", "av1"), ("opus", "vorbis"), 1e-3),
    "ts": ContainerKind(
        *("ts", "mpegts", ("h264", "h264b", "hevc", "mpeg1", "mpeg2")),
        *(("aac", "mp2", "mp3", "ac3", "eac3", "opus"), 1 / 90000),
        heard=(*_HEARD, "opus"),
    ),
    "ps": ContainerKind("mpg", "vob", ("mpeg1", "mpeg2"), ("mp2", "mp3", "ac3"), 1 / 90000, heard=_HEARD),
    "avi": ContainerKind(
        *("avi", "avi", ("mpeg4", "mpeg4b", "mjpeg", "h264", "h264b", "ffv1")),
        *(("mp3", "mp2", "ac3", "pcm8", "pcm16", "pcm24", "float"), 0, _HEARD),
        counts_frames=True,
        starts=(0.0,),
        offsets=(0.0,),
    ),
    "mxf": ContainerKind(
        *("mxf", "mxf", ("mpeg2",), ("pcm16", "pcm24"), 0), counts_frames=True, starts=(0.0,), offsets=(0.0,)
    ),
    "ogg": ContainerKind(
        "ogg", "ogg", ("vp8",), ("opus", "vorbis", "flac"), 0, counts_frames=True, starts=(0.0,)
    ),
    "flv": ContainerKind(
        *("flv", "flv", ("flv1", "h264", "h264b", "hevc", "vp9", "av1")),
        *(("aac", "mp3", "opus", "flac", "ac3"), 1e-3, _HEARD),
    ),
    "asf": ContainerKind("asf", "asf", ("wmv2", "mpeg4"), ("wma", "mp3", "aac", "pcm16"), 1e-3, heard=_HEARD),
}


def heard_priming_s(container: str, sound: str, sample_rate: int, first_sound_s: float) -> float:
    """How much earlier than its first true sample a sound begins, for want of words in the file.

    FFmpeg's decoder of Windows Media drops one frame that holds sound, so that it begins later.
    """
    kind = CONTAINERS[container]
    if sound == "wma" and container == "asf":
        return -(512 if sample_rate <= 16000 else 1024 if sample_rate <= 22050 else 2048) / sample_rate
    priming_s = stored_priming_s(sound, sample_rate)
    if kind.movie_hz and sound != "opus" and sound not in kind.heard:  # Opus tells it in its own header too
        return min(priming_s, first_sound_s)
    return priming_s if sound in kind.heard else 0.0


def stored_priming_s(sound: str, sample_rate: int) -> float:
    """Run-in that FFmpeg's encoder writes in front of the first sample."""
    codec = SOUND_CODECS[sound]
    return codec.priming / (codec.priming_rate or sample_rate)


def phone_step_s(now_s: float, rng: np.random.Generator) -> float:
    """Between two pictures of a phone: exposure and load decide."""
    return float(rng.uniform(0.033, 0.185))


def slow_motion_step_s(now_s: float, rng: np.random.Generator) -> float:
    """One second at 30 pictures a second, then one at 240, and so on."""
    return 1 / 240 if int(now_s) % 2 else 1 / 30


def webcam_step_s(now_s: float, rng: np.random.Generator) -> float:
    """30 a second by its label, 27 in fact, with jitter, and every twentieth or so lost."""
    return 0.037 * (2 if rng.random() < 0.05 else 1) + float(rng.uniform(-0.004, 0.004))


FRAME_RATES: dict[str, Fraction | Callable[[float, np.random.Generator], float]] = {
    "23.976": Fraction(24000, 1001),
    "24": Fraction(24),
    "25": Fraction(25),
    "29.97": Fraction(30000, 1001),
    "30": Fraction(30),
    "50": Fraction(50),
    "59.94": Fraction(60000, 1001),
    "60": Fraction(60),
    "120": Fraction(120),
    "phone": phone_step_s,
    "slow_motion": slow_motion_step_s,
    "webcam": webcam_step_s,
}
