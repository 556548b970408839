"""Decoded arrays to what a clip holds: mono float32 sound, pictures the right way up. No media library."""

from __future__ import annotations

import numpy as np

# H W pixels, C channels, N samples.

_PCM_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}


def to_mono(data: np.ndarray, *, sample_format: str, channels: int) -> np.ndarray:
    """float32 mean of all channels of one FFmpeg frame; FFmpeg's own downmix exceeds 1.

    data: [C, N] where the format ends in p (planar), else interleaved. Integers are scaled to [-1, 1).
    """
    data_CN = data if sample_format.endswith("p") else data.reshape(-1, channels).T
    kind = sample_format.removesuffix("p")
    mono_N = data_CN.mean(axis=0, dtype=np.float64)
    if kind == "u8":
        mono_N = mono_N - _PCM_SCALE["u8"]
    return np.nan_to_num(mono_N / _PCM_SCALE.get(kind, 1.0)).astype(np.float32)


def resampled(samples_N: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    if source_rate == rate:
        return samples_N
    import torch  # heavy, and not needed to probe
    from torchaudio.functional import resample

    return resample(torch.from_numpy(samples_N), source_rate, rate, lowpass_filter_width=16).numpy()


def turn_of(display_matrix: bytes | None) -> tuple[bool, bool, bool]:
    """(transpose, mirror, upside down), in this order; phones store portrait clips lying down."""
    if display_matrix is None:
        return False, False, False
    a, b, _, c, d = (int(entry) for entry in np.frombuffer(display_matrix, dtype=np.int32)[:5])
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def upright(rgb_HWC: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    transpose, mirror, upside_down = turn
    if transpose:
        rgb_HWC = rgb_HWC.transpose(1, 0, 2)
    return rgb_HWC[:: -1 if upside_down else 1, :: -1 if mirror else 1]


def centre_crop(rgb_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = (rgb_HWC.shape[0] - size[0]) // 2, (rgb_HWC.shape[1] - size[1]) // 2
    return np.ascontiguousarray(rgb_HWC[top : top + size[0], left : left + size[1]])
