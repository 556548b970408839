"""Write a clip as .mp4. The only file of the project that encodes media containers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# T frames, H W pixels, N audio samples.

AUDIO_BITS_PER_SAMPLE = 6  # the most that one AAC channel may spend: 6144 bits per 1024 samples


def write_clip(
    path: str | Path,
    video_THWC: np.ndarray | None,
    audio_N: np.ndarray | None = None,
    *,
    fps: float | Fraction,
    sample_rate: int,
    crf: int = 18,
) -> None:
    """H.264 (yuv420p) and AAC in an .mp4: frame i is shown at exactly i / fps, sample n is heard at n / rate.

    video_THWC: uint8 RGB with even height and width. audio_N: float32 mono in [-1, 1]. The encoder's priming
    is covered by an edit list, so players and `decode_clip` start at sample 0. ValueError for what cannot be
    written.
    """
    _check(video_THWC, audio_N)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = audio = None
        if video_THWC is not None:
            # The same pixels give the same file: on one thread, and without macroblock trees, for which
            # libx264 reads memory that nobody wrote when pictures are as small as 64x64.
            options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
            video = container.add_stream("libx264", rate=rate, options=options)
            video.height, video.width, video.pix_fmt = video_THWC.shape[1], video_THWC.shape[2], "yuv420p"
            video.codec_context.thread_count = 1
            video.time_base = video.codec_context.time_base = 1 / rate
        if audio_N is not None:
            # no perceptual noise substitution: it is random, and a cut would differ from that of the whole
            audio = container.add_stream("aac", rate=sample_rate, layout="mono", options={"aac_pns": "0"})
            audio.bit_rate = AUDIO_BITS_PER_SAMPLE * sample_rate
            audio.time_base = audio.codec_context.time_base = Fraction(1, sample_rate)
        if video is not None and video_THWC is not None:
            for index, image_HWC in enumerate(video_THWC):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
                frame.pts, frame.time_base = index, 1 / rate
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None and audio_N is not None:
            samples_1N = np.ascontiguousarray(np.clip(audio_N, -1, 1), dtype=np.float32)[None]
            block = audio.codec_context.frame_size or 1024
            for start in range(0, samples_1N.shape[1], block):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(samples_1N[:, start : start + block]), format="fltp", layout="mono"
                )
                frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


def _check(video_THWC: np.ndarray | None, audio_N: np.ndarray | None) -> None:
    if video_THWC is None and audio_N is None:
        raise ValueError("write_clip got neither picture nor sound; give at least one")
    if video_THWC is not None:
        if (
            video_THWC.ndim != 4
            or video_THWC.shape[-1] != 3
            or video_THWC.dtype != np.uint8
            or not len(video_THWC)
        ):
            raise ValueError(
                f"picture must be uint8 [T, H, W, 3], got {video_THWC.dtype} {list(video_THWC.shape)}"
            )
        if video_THWC.shape[1] % 2 or video_THWC.shape[2] % 2:
            raise ValueError(
                f"yuv420p needs an even height and width, got {video_THWC.shape[1]}x{video_THWC.shape[2]}"
            )
    if audio_N is not None and (audio_N.ndim != 1 or not len(audio_N)):
        raise ValueError(f"sound must be mono samples [N], got {list(audio_N.shape)}")
