"""Real media files with a flash and a click at a known time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

MediaWriter = Callable[..., Path]


@pytest.fixture
def write_media(tmp_path: Path) -> MediaWriter:
    """write_media(name, frame_times_s=..., event_s=...): the picture turns white, and clicks, at event_s."""

    def write(
        name: str,
        *,
        frame_times_s: Sequence[Fraction | float],
        event_s: float,
        tick: Fraction = Fraction(1, 90000),
        video_codec: str = "libx264",
        audio_codec: str | None = "aac",
        sample_rate: int = 48000,
        layout: str = "stereo",
        audio_start_s: float = 0.0,
        audio_end_s: float | None = None,
        size: tuple[int, int] = (48, 64),
        gop: int = 12,
    ) -> Path:
        path = tmp_path / name
        end_s = float(frame_times_s[-1]) + 0.1 if audio_end_s is None else audio_end_s
        with av.open(str(path), "w") as container:
            video = container.add_stream(video_codec, rate=30, options={"g": str(gop)})
            video.height, video.width, video.pix_fmt = *size, "yuv420p"
            video.time_base = video.codec_context.time_base = tick
            audio = (
                container.add_stream(audio_codec, rate=sample_rate, layout=layout) if audio_codec else None
            )
            for time_s in frame_times_s:
                level = 235 if time_s >= event_s - 1e-9 else 20
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), level, np.uint8), format="rgb24")
                frame.pts, frame.time_base = round(time_s / tick), tick
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            if audio is not None:
                channels = audio.codec_context.layout.nb_channels
                samples = np.zeros((channels, round((end_s - audio_start_s) * sample_rate)), np.float32)
                samples[:, round((event_s - audio_start_s) * sample_rate)] = 0.9
                block = audio.codec_context.frame_size or 1024
                for start in range(0, samples.shape[1], block):
                    piece = np.ascontiguousarray(samples[:, start : start + block])
                    frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
                    frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
                    frame.pts = start + round(audio_start_s * sample_rate)
                    resampler = av.AudioResampler(
                        format=audio.codec_context.format, layout=layout, rate=sample_rate
                    )
                    for converted in resampler.resample(frame):
                        container.mux(audio.encode(converted))
                container.mux(audio.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def media_folder() -> Path:
    folder = Path(
        os.environ.get("WORLDMODEL_MEDIA", Path(__file__).parents[2] / ".." / "shared" / "media")
    ).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}; set WORLDMODEL_MEDIA")
    return folder
