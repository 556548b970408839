"""Codecs keep their contract: geometry, round trips, no look-ahead, repeatable."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from avtok import evaluate
from avtok.audio import HOP, LEFT_CONTEXT, LOGMEL_SPEC, LogMelCodec
from avtok.load import codec_spec, load_codec, shipped_codecs
from avtok.train import fit_video_codec
from avtok.video import PcaVideoCodec
from worldmodel.worlds.bounce import BounceSettings, simulate


@pytest.fixture(scope="module")
def episode():
    return simulate(BounceSettings(), seed=77, duration_s=2.0)


@pytest.fixture(scope="module")
def video_codec() -> PcaVideoCodec:
    return load_codec("pca-4x8x8-48")


def test_shipped_codecs_have_the_geometry_that_the_model_is_built_for(video_codec, episode):
    assert shipped_codecs() == ["logmel-64", "patchconv-4x8x8-48", "pca-4x8x8-48", "spectral-32"]
    video, audio = codec_spec("pca-4x8x8-48"), codec_spec("logmel-64")
    assert (
        video.latent_shape(8, (64, 64))
        == (8, 8, 8, 48)
        == tuple(video_codec.encode(episode.video_THWC).shape)
    )
    assert float(audio.steps_per_second) == 64
    assert audio.latent_shape(128) == (128, 64) == tuple(LogMelCodec().encode(episode.audio_N).shape)
    assert audio == LOGMEL_SPEC


def test_a_render_survives_the_picture_codec(video_codec, episode):
    decoded_THWC = video_codec.decode(video_codec.encode(episode.video_THWC))
    assert decoded_THWC.dtype == np.uint8
    assert decoded_THWC.shape == episode.video_THWC.shape
    assert evaluate.psnr_db(episode.video_THWC, decoded_THWC) > 28.5


def test_latents_have_about_unit_spread(video_codec, episode):
    assert 0.4 < float(video_codec.encode(episode.video_THWC).square().mean().sqrt()) < 1.5
    silence_TC, loud_TC = (
        LogMelCodec().encode(np.zeros(8000)),
        LogMelCodec().encode(np.sin(np.arange(8000) / 3.0)),
    )
    assert float(silence_TC.std()) == 0
    assert -1.5 < float(silence_TC.mean()) < -1
    assert float(loud_TC.max()) < 3.5


def test_an_image_fills_one_token(video_codec, episode):
    image_THWC = episode.video_THWC[:1]
    assert torch.equal(video_codec.encode(image_THWC), video_codec.encode(np.repeat(image_THWC, 4, axis=0)))


def test_bright_errors_are_clamped(video_codec):
    pixels = video_codec.decode(torch.full((1, 1, 1, 48), 40.0))
    assert (pixels == 255).any()
    assert (pixels == 0).any()


@pytest.mark.parametrize("shape", [(6, 64, 64, 3), (4, 60, 64, 3), (4, 64, 64), (0, 64, 64, 3)])
def test_pictures_that_do_not_fit_are_refused(video_codec, shape):
    with pytest.raises(ValueError, match="picture"):
        video_codec.encode(np.zeros(shape, np.uint8))


def test_a_fitted_codec_beats_its_mean_and_survives_saving(tmp_path, episode):
    codec = fit_video_codec([episode.video_THWC], components=12, trained_on=["a.mp4"])
    decoded_THWC = codec.decode(codec.encode(episode.video_THWC))
    mean_THWC = codec.decode(torch.zeros(8, 8, 8, 12))
    gain_db = evaluate.psnr_db(episode.video_THWC, decoded_THWC) - evaluate.psnr_db(
        episode.video_THWC, mean_THWC
    )
    assert gain_db > 8
    assert float(codec.encode(episode.video_THWC).square().mean().sqrt()) == pytest.approx(1.0, abs=0.02)
    codec.save(tmp_path / "codec")
    loaded = load_codec(str(tmp_path / "codec"))
    assert loaded.trained_on == ("a.mp4",)
    assert np.abs(loaded.decode(codec.encode(episode.video_THWC)).astype(int) - decoded_THWC).max() <= 1


def test_weights_that_were_swapped_are_refused(tmp_path, episode):
    for name, components in (("a", 4), ("b", 5)):
        fit_video_codec([episode.video_THWC], components=components).save(tmp_path / name)
    (tmp_path / "b" / "weights.safetensors").replace(tmp_path / "a" / "weights.safetensors")
    with pytest.raises(ValueError, match="content_hash"):
        load_codec(str(tmp_path / "a"))


def test_too_few_patches_to_fit_are_refused():
    with pytest.raises(ValueError, match="give more clips"):
        fit_video_codec([np.zeros((4, 8, 8, 3), np.uint8)])


def test_an_unknown_codec_is_told_what_exists(tmp_path):
    with pytest.raises(ValueError, match="logmel-64, patchconv-4x8x8-48, pca-4x8x8-48"):
        codec_spec("pca-4x8x8-64")
    for text in ("{", "{}", json.dumps({"kind": "log_mel", "name": "x"})):
        (tmp_path / "codec.json").write_text(text)
        with pytest.raises(ValueError, match=r"codec\.json"):
            codec_spec(str(tmp_path))


# Sound.


def test_a_cut_with_its_left_context_equals_the_same_cut_of_the_whole(episode):
    codec, first = LogMelCodec(), 40
    whole_TC = codec.encode(episode.audio_N)
    with_context_N = episode.audio_N[first * HOP - LEFT_CONTEXT :]
    assert torch.allclose(
        codec.encode(with_context_N, context_samples=LEFT_CONTEXT), whole_TC[first:], atol=1e-6
    )
    assert not torch.allclose(
        codec.encode(episode.audio_N[first * HOP :])[:3], whole_TC[first : first + 3], atol=1e-2
    )


@pytest.mark.parametrize("sample", [0, 249, 250, 4100, 31999])
def test_a_sample_reaches_its_own_step_and_three_later_ones_and_none_before(sample):
    audio_N = np.zeros(32000, np.float32)
    silence_TC = LogMelCodec().encode(audio_N)
    # the window is zero at its edges, so a loud burst stands for a sample
    audio_N[sample : sample + 1] = 1.0
    changed = torch.nonzero((LogMelCodec().encode(audio_N) - silence_TC).abs().amax(dim=1) > 0).flatten()
    assert int(changed.min()) in (
        sample // HOP,
        sample // HOP + 1,
    )  # the very last sample weighs nearly nothing
    assert int(changed.min()) >= sample // HOP
    assert int(changed.max()) <= sample // HOP + 3


def test_impacts_come_back_in_time_and_always_the_same(episode):
    codec = LogMelCodec()
    latents_TC = codec.encode(episode.audio_N)
    torch.manual_seed(5)
    first_N = codec.decode(latents_TC)
    state = torch.get_rng_state()
    assert np.array_equal(first_N, codec.decode(latents_TC))
    assert torch.equal(state, torch.get_rng_state())
    assert first_N.shape == episode.audio_N.shape
    onsets_s = [contact.time_s for contact in episode.truth.contacts]
    errors_ms = evaluate.onset_errors_ms(episode.audio_N, first_N, onsets_s, sample_rate=16000)
    assert len(errors_ms) >= 2
    assert np.median(np.abs(errors_ms)) < 3
    assert np.abs(first_N).max() <= 1


def test_short_and_empty_sounds():
    codec = LogMelCodec()
    assert tuple(codec.encode(np.zeros(249, np.float32)).shape) == (0, 64)
    assert len(codec.decode(torch.zeros(0, 64))) == 0
    assert len(codec.decode(torch.zeros(1, 64))) == 250
    with pytest.raises(ValueError, match="mono"):
        codec.encode(np.zeros((2, 500), np.float32))


# Measures.


def test_onset_error_measures_a_known_shift():
    sound_N = np.zeros(16000, np.float32)
    sound_N[8000:8400] = np.exp(-np.arange(400) / 100) * np.sin(np.arange(400))
    late_N = np.roll(sound_N, 80)
    assert evaluate.onset_errors_ms(sound_N, late_N, [0.5], sample_rate=16000) == pytest.approx(
        [5.0], abs=0.07
    )
    assert len(evaluate.onset_errors_ms(sound_N, np.zeros_like(sound_N), [0.5], sample_rate=16000)) == 0


def test_psnr_and_spectral_distance_of_known_signals():
    black = np.zeros((4, 8, 8, 3), np.uint8)
    assert evaluate.psnr_db(black, black) == 100
    assert evaluate.psnr_db(black, black + 255) == pytest.approx(0)
    noise_N = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert evaluate.log_spectral_distance_db(noise_N, noise_N) == 0
    assert evaluate.log_spectral_distance_db(noise_N, noise_N / 10) == pytest.approx(20, abs=0.1)


def test_word_errors_are_counted_over_words_and_the_interval_holds_the_rate():
    clips, texts = [np.zeros(1), np.ones(1)], ["a b", "c d e f"]

    def half_wrong(said: str, heard: str) -> float:
        return 0.5 if heard == "1" else 0.0

    wrong, words = evaluate.word_errors(
        clips, texts, transcribe=lambda clip: str(int(clip[0])), word_error_rate=half_wrong
    )
    assert (wrong.tolist(), words.tolist()) == ([0, 2], [2, 4])
    low, high = evaluate.bootstrap_interval(wrong, words)
    assert low <= 2 / 6 <= high


def test_configs_need_neither_torch_nor_av():
    code = (
        "import sys; import avtok, avtok.spec, avtok.load; avtok.load.codec_spec('pca-4x8x8-48');"
        "assert not {'torch', 'av', 'numpy'} & set(sys.modules);"
        "import avtok.video, avtok.audio, avtok.train, avtok.evaluate, avtok.clock;"
        "assert 'av' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": "tokenizers", "OMP_NUM_THREADS": "1"}
    )
