"""Write a clip as .mp4. The only file of the project that encodes media containers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Self

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
    size = None if video_THWC is None else (video_THWC.shape[1], video_THWC.shape[2])
    rate = None if audio_N is None else sample_rate
    with ClipWriter(path, fps=fps, size=size, sample_rate=rate, crf=crf) as writer:
        if video_THWC is not None:
            writer.add_picture(video_THWC)
            writer.end_picture()
        if audio_N is not None:
            writer.add_sound(audio_N)
            writer.end_sound()


class ClipWriter:
    """An .mp4 as `write_clip` writes it, in pieces: memory holds what the encoders hold, not the clip.

    size: height and width of the picture, None for none; sample_rate: None for no sound. Pieces of both
    come in turns, a few seconds each. keyframe_every: frames between two at which a reader can begin.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float | Fraction,
        size: tuple[int, int] | None,
        sample_rate: int | None,
        crf: int = 18,
        keyframe_every: int | None = None,
    ) -> None:
        self.rate, self.sample_rate = Fraction(fps).limit_denominator(1001), sample_rate or 0
        self.num_frames = self.num_samples = 0
        self.num_bytes = 0  # encoded so far
        self._pending_N = np.zeros(0, dtype=np.float32)
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._video = None if size is None else self._picture_stream(size, crf, keyframe_every)
        self._audio = None if sample_rate is None else self._sound_stream(sample_rate)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_picture(self, video_THWC: np.ndarray) -> None:
        """uint8 RGB frames of the size given."""
        assert self._video is not None, "a writer without size has no picture"
        for image_HWC in video_THWC:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_HWC), format="rgb24")
            frame.pts, frame.time_base = self.num_frames, 1 / self.rate
            self._mux(self._video.encode(frame))
            self.num_frames += 1

    def add_sound(self, audio_N: np.ndarray) -> None:
        """float32 mono samples; those of an unfinished block wait for the next."""
        assert self._audio is not None, "a writer without sample_rate has no sound"
        clipped_N = np.clip(audio_N, -1, 1).astype(np.float32)
        samples_N = np.concatenate([self._pending_N, clipped_N])
        block = self._audio.codec_context.frame_size or 1024
        whole = len(samples_N) // block * block
        for start in range(0, whole, block):
            self._encode_sound(samples_N[start : start + block])
        self._pending_N = samples_N[whole:]

    def end_picture(self) -> None:
        """What the encoder of the picture still holds is written."""
        if self._video is not None:
            self._mux(self._video.encode(None))
            self._video = None

    def end_sound(self) -> None:
        """The last block of sound may be short."""
        if self._audio is not None:
            if len(self._pending_N):
                self._encode_sound(self._pending_N)
            self._mux(self._audio.encode(None))
            self._audio = None

    def close(self) -> None:
        self.end_picture()
        self.end_sound()
        self._container.close()

    def _picture_stream(self, size: tuple[int, int], crf: int, keyframe_every: int | None) -> av.VideoStream:
        # The same pixels give the same file: on one thread, and without macroblock trees, for which
        # libx264 reads memory that nobody wrote when pictures are as small as 64x64.
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        if keyframe_every is not None:
            options["g"] = str(keyframe_every)
        video = self._container.add_stream("libx264", rate=self.rate, options=options)
        video.height, video.width, video.pix_fmt = size[0], size[1], "yuv420p"
        video.codec_context.thread_count = 1
        video.time_base = video.codec_context.time_base = 1 / self.rate
        return video

    def _sound_stream(self, sample_rate: int) -> av.AudioStream:
        # no perceptual noise substitution: it is random, and a cut would differ from that of the whole
        audio = self._container.add_stream("aac", rate=sample_rate, layout="mono", options={"aac_pns": "0"})
        audio.bit_rate = AUDIO_BITS_PER_SAMPLE * sample_rate
        audio.time_base = audio.codec_context.time_base = Fraction(1, sample_rate)
        return audio

    def _mux(self, packets: list[av.Packet]) -> None:
        self.num_bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)

    def _encode_sound(self, samples_N: np.ndarray) -> None:
        assert self._audio is not None
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples_N)[None], format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = self.sample_rate, self.num_samples
        frame.time_base = Fraction(1, self.sample_rate)
        self._mux(self._audio.encode(frame))
        self.num_samples += len(samples_N)


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
