"""Decoded arrays to what a clip holds: mono float32 sound, pictures the right way up. No media library."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd, pi

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# H W pixels, C channels, N samples; P phases, K taps of a filter, R samples made from a span of S.

_PCM_SCALE = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63}
_LOUDEST = 8.0  # decoders overshoot full scale, but not by that much
_LOBES = 16
_ROLL_OFF = 0.99
_MAX_BANK = 1 << 21  # numbers held at once


def to_mono(data: np.ndarray, *, sample_format: str, channels: int) -> np.ndarray:
    """float32 mean of all channels of one FFmpeg frame; FFmpeg's own downmix exceeds 1.

    data: [C, N] where the format ends in p (planar), else interleaved. Integers are scaled to [-1, 1).
    """
    data_CN = data if sample_format.endswith("p") else data.reshape(-1, channels).T
    kind = sample_format.removesuffix("p")
    mono_N = data_CN.mean(axis=0, dtype=np.float64)
    if kind == "u8":
        mono_N -= _PCM_SCALE["u8"]
    if kind in _PCM_SCALE:
        return (mono_N / _PCM_SCALE[kind]).astype(np.float32)
    # broken float streams hold any number, and one of them would spoil all that the resampler reaches
    if not np.isfinite(mono_N).all():
        mono_N = np.nan_to_num(mono_N)
    return mono_N.clip(-_LOUDEST, _LOUDEST).astype(np.float32)


def resampled(samples_N: np.ndarray, source_rate: int, rate: int, *, late: float = 0.0) -> np.ndarray:
    """float32 samples at another rate through a windowed sinc: torchaudio's `resample` with 16 lobes.

    late: by which part of a source sample, -0.5 to 0.5, the source lies behind the grid. It counts where the
    rate goes up: there it may be more than half a sample of the target.

    In numpy, because a decoder that starts for untrusted files cannot wait for torch to load; and rates
    without a common divisor (44099 Hz) take milliseconds here, not minutes.
    """
    if source_rate == rate:
        return samples_N
    common = gcd(source_rate, rate)
    source, target = source_rate // common, rate // common
    late_64 = round(late * 64) if rate > source_rate else 0
    taps_PK, num_before = _taps(source, target, late_64)
    num_out = -(-len(samples_N) * target // source)
    if source * target <= _MAX_BANK:
        bank_RS, step = _bank(source, target, late_64)
        padded_N = np.pad(samples_N, (num_before, bank_RS.shape[1] + step))
        num_blocks = -(-num_out // len(bank_RS))
        spans_BS = sliding_window_view(padded_N, bank_RS.shape[1])[: num_blocks * step : step]
        return (np.ascontiguousarray(spans_BS) @ bank_RS.T).reshape(-1)[:num_out]
    spans_NK = sliding_window_view(np.pad(samples_N, (num_before, taps_PK.shape[1])), taps_PK.shape[1])
    out_N = np.empty(num_out, np.float32)
    for index_N in np.array_split(np.arange(num_out), num_out * taps_PK.shape[1] // _MAX_BANK + 1):
        spans, taps = spans_NK[index_N * source // target], taps_PK[index_N % target]
        out_N[index_N] = np.einsum("nk,nk->n", spans, taps)
    return out_N


@lru_cache(maxsize=8)
def _taps(source: int, target: int, late_64: int) -> tuple[np.ndarray, int]:
    """The filter of each of the `target` phases, and how many source samples it reaches back."""
    cutoff = min(source, target) * _ROLL_OFF / source
    num_before = ceil(_LOBES / cutoff) + (late_64 > 0)
    late_P = np.arange(target) * source % target / target - late_64 / 64
    lobe_PK = np.clip((np.arange(-num_before, num_before + 2) - late_P[:, None]) * cutoff, -_LOBES, _LOBES)
    window_PK = np.cos(lobe_PK * pi / _LOBES / 2) ** 2
    return (np.sinc(lobe_PK) * window_PK * cutoff).astype(np.float32), num_before


@lru_cache(maxsize=8)
def _bank(source: int, target: int, late_64: int) -> tuple[np.ndarray, int]:
    """The same filters, each at its place in a span of source samples: one matrix product makes R samples."""
    taps_PK, _ = _taps(source, target, late_64)
    repeats = max(1, ceil(taps_PK.shape[1] / source))  # shorter spans would overlap for the most part
    bank_RS = np.zeros((target * repeats, taps_PK.shape[1] + source * repeats), np.float32)
    for row, span_S in enumerate(bank_RS):
        span_S[row * source // target :][: taps_PK.shape[1]] = taps_PK[row % target]
    return bank_RS, source * repeats


def turn_of(display_matrix: bytes | None) -> tuple[bool, bool, bool]:
    """(transpose, mirror, upside down), in this order; phones store portrait clips lying down."""
    if display_matrix is None:
        return False, False, False
    a, b, _, c, d = (int(entry) for entry in np.frombuffer(display_matrix, dtype=np.int32)[:5])
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def upright(image: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """A view of [H, W, ...]."""
    transpose, mirror, upside_down = turn
    if transpose:
        image = image.swapaxes(0, 1)
    return image[:: -1 if upside_down else 1, :: -1 if mirror else 1]


def centre_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A view of [H, W, ...]."""
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]
