"""Measures of a codec: arrays in, numbers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

# T frames, H W pixels, N samples.

_BEFORE_S, _AFTER_S = 0.030, 0.050  # where an onset is searched around its true time
_RISE = 0.3  # an onset is where the envelope first reaches this part of its local peak


class Codec(Protocol):
    """Anything that encodes a clip's array and decodes it again."""

    def encode(self, clip: np.ndarray, /) -> Any: ...
    def decode(self, latents: Any, /) -> np.ndarray: ...


def psnr_db(reference_THWC: np.ndarray, decoded_THWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio of one uint8 clip; 100 where both are the same."""
    error = np.mean((reference_THWC.astype(np.float64) - decoded_THWC) ** 2)
    return float(min(100.0, 10 * np.log10(255**2 / max(error, 1e-6))))


def round_trip(
    codec: Codec, clips: Iterable[np.ndarray], *, units_per_s: float
) -> tuple[list[np.ndarray], float]:
    """Decoded clips, and seconds of media per CPU second of encoding plus decoding."""
    decoded, media_s, begin_s = [], 0.0, time.process_time()
    for clip in clips:
        decoded.append(codec.decode(codec.encode(clip)))
        media_s += len(clip) / units_per_s
    return decoded, media_s / max(time.process_time() - begin_s, 1e-9)


def onset_errors_ms(
    reference_N: np.ndarray, decoded_N: np.ndarray, onsets_s: Sequence[float], *, sample_rate: int
) -> np.ndarray:
    """Signed lateness of each known onset against the reference, both found by one detector."""
    found = [
        (_onset_s(decoded_N, onset_s, sample_rate), _onset_s(reference_N, onset_s, sample_rate))
        for onset_s in onsets_s
    ]
    return np.array([(late - true) * 1e3 for late, true in found if late is not None and true is not None])


def _onset_s(audio_N: np.ndarray, near_s: float, sample_rate: int) -> float | None:
    begin = max(0, round((near_s - _BEFORE_S) * sample_rate))
    piece_N = np.abs(audio_N[begin : round((near_s + _AFTER_S) * sample_rate)])
    width = max(1, sample_rate // 1000)
    if len(piece_N) < 2 * width or not piece_N.any():
        return None
    envelope_N = np.convolve(piece_N, np.ones(width) / width)[
        : len(piece_N)
    ]  # causal: no onset before the sound
    return (begin + int(np.argmax(envelope_N >= _RISE * envelope_N.max()))) / sample_rate


def log_spectral_distance_db(reference_N: np.ndarray, decoded_N: np.ndarray, *, window: int = 512) -> float:
    """Rms over frequency of the difference in dB, averaged over frames; floor 80 dB below the loudest."""
    length = min(len(reference_N), len(decoded_N))
    first, second = (_power(signal_N[:length], window) for signal_N in (reference_N, decoded_N))
    floor = max(float(first.max(initial=0)) * 1e-8, 1e-12)
    difference_db = 10 * np.log10((first + floor) / (second + floor))
    return float(np.sqrt((difference_db**2).mean(axis=1)).mean())


def _power(signal_N: np.ndarray, window: int) -> np.ndarray:
    frames_TN = np.lib.stride_tricks.sliding_window_view(np.pad(signal_N, window // 2), window)[
        :: window // 4
    ]
    return np.abs(np.fft.rfft(frames_TN * np.hanning(window), axis=1)) ** 2


def bootstrap_interval(
    errors: Sequence[float] | np.ndarray,
    sizes: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float]:
    """95% interval of sum(errors) / sum(sizes) over resampled sentences: words of one are not independent."""
    pick = np.random.default_rng(seed).integers(0, len(errors), size=(draws, len(errors)))
    rates = np.asarray(errors, float)[pick].sum(axis=1) / np.asarray(sizes, float)[pick].sum(axis=1)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def word_errors(
    clips: Iterable[np.ndarray],
    sentences: Sequence[str],
    *,
    transcribe: Callable[[np.ndarray], str],
    word_error_rate: Callable[[str, str], float],
) -> tuple[np.ndarray, np.ndarray]:
    """Wrong words and spoken words of each sentence; (reference, heard) -> rate is the caller's."""
    sizes = np.array([len(sentence.split()) for sentence in sentences], float)
    rates = [word_error_rate(said, transcribe(clip)) for said, clip in zip(sentences, clips, strict=True)]
    return np.array(rates, float) * sizes, sizes
