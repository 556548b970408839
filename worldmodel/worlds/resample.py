"""Sound at another rate."""

from __future__ import annotations

import numpy as np


def resampled(audio_N: np.ndarray, sample_rate: int, rate: int) -> np.ndarray:
    """float32 [N'] by torchaudio's windowed sinc."""
    if sample_rate == rate:
        return audio_N
    import torch
    from torchaudio.functional import resample

    return resample(torch.from_numpy(audio_N), sample_rate, rate).numpy()
