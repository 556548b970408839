"""Clips whose shots, levels and likenesses are known, encoded by real encoders."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# T frames, H W pixels, C channels, N samples.

RATE = 16000
CODECS = {
    ".mp4": ("libx264", "aac"),
    ".webm": ("libvpx", "libopus"),
    ".avi": ("mpeg4", "mp2"),
    ".mkv": ("mpeg4", "flac"),
}


def moving(seed: int, num_frames: int, size: tuple[int, int] = (96, 128), speed: float = 1.5) -> np.ndarray:
    """Coloured blobs that drift over a background of their own, uint8 [T, H, W, C]."""
    random = np.random.default_rng(seed)
    height, width = size
    y_H1, x_1W = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    background_C, tilt_C = random.uniform(30, 200, 3), random.uniform(-60, 60, 3)
    blobs = [
        (random.uniform(0.1, 0.9, 2), random.normal(0, 0.012 * speed, 2), random.uniform(0, 255, 3))
        for _ in range(5)
    ]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        image = background_C + tilt_C * (y_H1 + x_1W)[..., None]
        for place, velocity, color in blobs:
            y, x = (place + velocity * t) % 1.0
            weight = np.exp(-((y_H1 - y) ** 2 + (x_1W - x) ** 2) / 0.012)[..., None]
            image = image * (1 - weight) + color * weight
        frames[t] = np.clip(image, 0, 255)
    return frames


def melody(seed: int, seconds: float) -> np.ndarray:
    """Notes and noise that only this seed plays, float32 [N]."""
    random = np.random.default_rng(seed)
    time_N = np.arange(round(seconds * RATE)) / RATE
    audio_N = 0.004 * random.standard_normal(len(time_N))
    for start_s in np.arange(0, seconds, 0.25):
        inside = (time_N >= start_s) & (time_N < start_s + 0.2)
        audio_N[inside] += 0.3 * np.sin(2 * np.pi * random.uniform(120, 3500) * time_N[inside])
    return audio_N.astype(np.float32)


def write(
    path: Path,
    video_THWC: np.ndarray | None,
    audio_N: np.ndarray | None,
    *,
    fps: Fraction | int = 25,
    quality: int = 0,
) -> Path:
    """By the codecs of the file's suffix. quality: bits a second of the picture; 0: the encoder's own."""
    video_codec, audio_codec = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        video = audio = None
        if video_THWC is not None:
            video = container.add_stream(video_codec, rate=fps)
            video.height, video.width = video_THWC.shape[1:3]
            video.pix_fmt = "yuv420p"
            if quality:
                video.bit_rate = quality
        if audio_N is not None:
            rate = 48000 if audio_codec == "libopus" else RATE
            audio = container.add_stream(audio_codec, rate=rate, layout="mono")
        for index, image in enumerate(video_THWC if video_THWC is not None else ()):
            assert video is not None
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
        if video is not None:
            container.mux(video.encode(None))
        if audio is not None:
            assert audio_N is not None
            frame = av.AudioFrame.from_ndarray(audio_N[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            resampler = av.AudioResampler(
                audio.codec_context.format,
                "mono",
                audio.codec_context.sample_rate,
                frame_size=audio.codec_context.frame_size,
            )
            for piece in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return path
