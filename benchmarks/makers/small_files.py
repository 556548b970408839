"""Writes one small real media file of every common container and codec: two seconds of some ten kilobytes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# T frames, H W pixels, C channels, N samples.

SECONDS, FPS, MPEG_FPS, RATE_HZ, SIZE = 2, 16, 25, 48000, (96, 128)


@dataclass(frozen=True)
class Kind:
    """name: of the file; its ending chooses the container unless `container` does."""

    name: str
    picture: str = ""
    sound: str = ""
    container: str | None = None
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)


QUIET = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"svtav1-params": "lp=1"}}
KINDS = (
    Kind("h264-aac.mp4", "libx264", "aac"),
    Kind("h264-aac-front.mp4", "libx264", "aac", options={"movflags": "faststart"}),
    Kind("h264-aac-fragments.mp4", "libx264", "aac", options={"movflags": "frag_keyframe+empty_moov"}),
    Kind("hevc-alac.mov", "libx265", "alac"),
    Kind("mjpeg-pcm.mov", "mjpeg", "pcm_s16le", pixels="yuvj420p"),
    Kind("mpeg4-mp3.mp4", "mpeg4", "libmp3lame"),
    Kind("h263.3gp", "h263"),
    Kind("h264-flac.mkv", "libx264", "flac"),
    Kind("ffv1-pcm.mkv", "ffv1", "pcm_s16le"),
    Kind("vp8-opus.webm", "libvpx", "libopus"),
    Kind("vp9-opus.webm", "libvpx-vp9", "libopus"),
    Kind("av1.mkv", "libsvtav1"),
    Kind("mpeg4-mp3.avi", "mpeg4", "libmp3lame"),
    Kind("mjpeg-pcm.avi", "mjpeg", "pcm_s16le", pixels="yuvj420p"),
    Kind("h264-aac.ts", "libx264", "aac"),
    Kind("mpeg2-ac3.ts", "mpeg2video", "ac3"),
    Kind("mpeg1-mp2.mpg", "mpeg1video", "mp2"),
    Kind("h264-aac.flv", "libx264", "aac"),
    Kind("wmv2-wmav2.wmv", "wmv2", "wmav2"),
    Kind("mpeg2-pcm.mxf", "mpeg2video", "pcm_s16le"),
    Kind("picture.gif", "gif", pixels="rgb8"),
    Kind("sound.wav", "", "pcm_s16le"),
    Kind("sound.aiff", "", "pcm_s16be"),
    Kind("sound.caf", "", "pcm_s16be"),
    Kind("sound.mp3", "", "libmp3lame"),
    Kind("sound.m4a", "", "aac"),
    Kind("sound.aac", "", "aac"),
    Kind("sound.flac", "", "flac"),
    Kind("sound.ogg", "", "libopus"),
    Kind("sound.ac3", "", "ac3"),
    Kind("still.png", "png", container="image2", pixels="rgb24"),
    Kind("still.jpg", "mjpeg", container="image2", pixels="yuvj420p"),
)


def write_small_files(folder: Path) -> list[Path]:
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings otherwise
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        _write(kind, folder / kind.name)
    return [folder / kind.name for kind in KINDS]


def _write(kind: Kind, path: Path) -> None:
    fps = MPEG_FPS if kind.picture.startswith(("mpeg1", "mpeg2")) else FPS
    height, width = (96, 128) if kind.picture else (0, 0)
    with av.open(str(path), "w", format=kind.container, options=kind.options) as container:
        picture = sound = None
        if kind.picture:
            picture = container.add_stream(
                kind.picture, rate=fps, options={"g": "8", **QUIET.get(kind.picture, {})}
            )
            picture.height, picture.width, picture.pix_fmt = height, width, kind.pixels
        if kind.sound:
            sound = container.add_stream(kind.sound, rate=RATE_HZ, layout="stereo")
            sound.bit_rate = 96000
        num_frames = 1 if kind.container == "image2" else SECONDS * fps
        seconds = np.array_split(_tone_CN(), SECONDS * 2, axis=1)
        frames = np.array_split(_pictures_THWC(num_frames, height, width), SECONDS * 2) if picture else []
        done = heard = 0
        for piece in range(SECONDS * 2):  # in turns, as recorders interleave
            for image_HWC in frames[piece] if picture else ():
                frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
                frame.pts, frame.time_base, done = done, Fraction(1, fps), done + 1
                container.mux(picture.encode(frame))
            if sound is not None:
                heard = _add_sound(container, sound, seconds[piece], heard)
        for stream in (picture, sound):
            if stream is not None:
                container.mux(stream.encode(None))


def _add_sound(container, sound: av.AudioStream, samples_CN: np.ndarray, heard: int) -> int:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples_CN), format="fltp", layout="stereo")
    frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), heard
    container.mux(sound.encode(frame))
    return heard + samples_CN.shape[1]


def _pictures_THWC(num_frames: int, height: int, width: int) -> np.ndarray:
    """A slope with a square that moves: real motion, and small in every codec."""
    slope_HW = np.add.outer(np.arange(height), np.arange(width)) % 200
    video_THWC = np.repeat(slope_HW[None, :, :, None], 3, axis=3).repeat(num_frames, axis=0).astype(np.uint8)
    for index, image_HWC in enumerate(video_THWC):
        left = index * 3 % (width - 24)
        image_HWC[20:44, left : left + 24] = (220, 40, 90)
    return video_THWC


def _tone_CN() -> np.ndarray:
    time_N = np.arange(SECONDS * RATE_HZ) / RATE_HZ
    return np.stack([0.4 * np.sin(2 * np.pi * 440 * time_N), 0.3 * np.sin(2 * np.pi * 660 * time_N)]).astype(
        "f4"
    )
