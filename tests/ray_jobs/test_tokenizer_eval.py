"""The evaluation of codecs measures what it says, on renders and on speech."""

from __future__ import annotations

import pytest

from ray_jobs.tokenizer_eval import evaluate_codecs


def test_the_shipped_codecs_are_measured_without_real_clips():
    pytest.importorskip("pocketsphinx", reason="the extra worldmodel[speech] is not installed")
    figures = evaluate_codecs("patchconv-4x8x8-48", "spectral-32", sentences=8, renders=6, seed=3)
    assert figures["video_psnr_db_bounce"] > 30
    assert figures["psnr_at_noise_02"] < figures["video_psnr_db_bounce"]
    assert figures["onset_error_ms"] < 2
    assert figures["wer_after"] < 0.3
    low, high = figures["wer_after_ci"]
    assert low <= figures["wer_after"] <= high
    assert figures["real_time_factor"] > 1
    assert figures["video_psnr_db_real"] is None
    assert figures["wer_real_words"] == 0


def test_an_unknown_codec_or_no_sentences_are_refused():
    with pytest.raises(ValueError, match="shipped"):
        evaluate_codecs("nothing", "logmel-64")
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_codecs("pca-4x8x8-48", "logmel-64", sentences=0)
