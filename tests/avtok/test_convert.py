"""Rates are converted as torchaudio does it, without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from avtok.convert import resampled


@pytest.mark.parametrize(
    ("source_rate", "rate"),
    [
        (48000, 16000),
        (44100, 16000),
        (8000, 16000),
        (192000, 16000),
        (11025, 48000),
        (1999, 1000),
        (7, 48000),
    ],
)
def test_rates_are_converted_as_torchaudio_does(source_rate, rate):
    samples_N = np.random.default_rng(0).uniform(-1, 1, 3 * source_rate + 5).astype(np.float32)
    reference = resample(torch.from_numpy(samples_N).double(), source_rate, rate, lowpass_filter_width=16)
    ours_N = resampled(samples_N, source_rate, rate)
    assert ours_N.shape == reference.shape
    assert ours_N.dtype == np.float32
    assert np.abs(ours_N - reference.numpy()).max() < 1e-5


def test_rates_without_a_common_divisor_keep_a_tone():
    tone_N = np.sin(2 * np.pi * 440 * np.arange(44099) / 44099).astype(np.float32)
    expected_N = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(resampled(tone_N, 44099, 16000) - expected_N)[200:-200].max() < 2e-3


def test_converting_rates_does_not_load_torch():
    code = "import sys, numpy; from avtok.convert import resampled; resampled(numpy.zeros(9, 'f4'), 3, 2); "
    subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=True)
