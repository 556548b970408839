"""The learned codecs as shipped: causal, streaming, deterministic, small, and better than no weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from avtok.evaluate import onset_errors_ms, psnr_db
from avtok.load import codec_folder, codec_spec, load_codec
from avtok.sound import LearnedAudioCodec
from avtok.sound_net import HOP, SoundNet, SoundNetConfig, multi_resolution_stft_loss, overlap_add
from worldmodel.worlds.bounce import Episode, simulate
from worldmodel.worlds.settings import world_settings

PICTURE, SOUND = "patchconv-4x8x8-48", "spectral-32"


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [simulate(world_settings("bounce"), seed=900 + index, duration_s=4.0) for index in range(6)]


@pytest.fixture(scope="module")
def picture():
    return load_codec(PICTURE)


@pytest.fixture(scope="module")
def sound():
    return load_codec(SOUND)


def test_both_together_weigh_at_most_eight_megabytes():
    files = [file for name in (PICTURE, SOUND) for file in codec_folder(name).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 8e6


def test_geometry_is_what_was_promised():
    picture, sound = codec_spec(PICTURE), codec_spec(SOUND)
    height, width = picture.spatial_stride
    assert 3 * picture.stride_units * height * width >= 16 * picture.channels
    assert picture.left_context_units == picture.latency_units == picture.look_ahead_units == 0
    assert sound.steps_per_second <= 64
    assert sound.channels <= 32
    assert sound.look_ahead_units == 0
    assert 0 < sound.latency_units <= 2000  # an eighth of a second


def test_what_it_was_trained_on_names_no_place_of_a_machine(picture, sound):
    for codec in (picture, sound):
        assert codec.trained_on
        assert not any(Path(name).is_absolute() for name in codec.trained_on)


def test_pictures_are_kept_better_than_by_components(picture, episodes):
    components = load_codec("pca-4x8x8-48")
    ours, theirs = (
        np.mean([psnr_db(e.video_THWC, codec.decode(codec.encode(e.video_THWC))) for e in episodes])
        for codec in (picture, components)
    )
    assert ours > 30
    assert ours > theirs + 2


def test_a_flow_models_errors_cost_less_than_with_components(picture, episodes):
    components = load_codec("pca-4x8x8-48")
    scores = []
    for codec in (picture, components):
        found = []
        for index, episode in enumerate(episodes[:3]):
            latents = codec.encode(episode.video_THWC)
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
            found.append(psnr_db(episode.video_THWC, codec.decode(latents + 0.2 * noise)))
        scores.append(np.mean(found))
    assert scores[0] > scores[1] + 1.5


def test_latents_have_unit_scale(picture, sound, episodes):
    pictures = torch.cat([picture.encode(e.video_THWC).flatten(0, 2) for e in episodes])
    sounds = torch.cat([sound.encode(e.audio_N) for e in episodes])
    for latents in (pictures, sounds):
        assert 0.6 < float(latents.square().mean().sqrt()) < 1.4


def test_a_stream_of_pictures_is_coded_step_by_step_as_the_whole(picture, episodes):
    video_THWC = episodes[0].video_THWC
    whole = picture.encode(video_THWC)
    parts = torch.cat([picture.encode(video_THWC[start : start + 4]) for start in range(0, 64, 4)])
    assert torch.allclose(parts, whole, atol=1e-5)
    decoded = np.concatenate([picture.decode(whole[step : step + 1]) for step in range(16)])
    assert np.abs(decoded.astype(int) - picture.decode(whole)).max() <= 1


def test_a_cut_of_sound_with_its_context_equals_the_cut_of_the_whole(sound, episodes):
    audio_N, context = episodes[0].audio_N, sound.spec.left_context_units
    whole = sound.encode(audio_N)
    for first in (16000, 32250):
        cut = sound.encode(audio_N[first - context : first + 8000], context_samples=context)
        assert torch.allclose(cut, whole[first // HOP :][:32], atol=1e-4)
    short = sound.encode(audio_N[16000 - 1000 : 24000], context_samples=1000)
    assert not torch.allclose(short[:2], whole[64:66], atol=1e-3)  # else the context would be too long


def test_the_sound_encoder_never_looks_ahead(sound, episodes):
    audio_N = episodes[0].audio_N.copy()
    before = sound.encode(audio_N)
    audio_N[32000:] = 0.3
    after = sound.encode(audio_N)
    assert torch.equal(before[: 32000 // HOP], after[: 32000 // HOP])
    assert not torch.equal(before[32000 // HOP], after[32000 // HOP])


def test_decoded_sound_is_final_after_the_declared_latency_and_not_before(sound, episodes):
    latents = sound.encode(episodes[0].audio_N)
    known = 100  # steps that have arrived
    whole, part = sound.decode(latents), sound.decode(latents[:known])
    final = known * HOP - sound.spec.latency_units
    assert np.abs(whole[:final] - part[:final]).max() < 1e-4
    assert np.abs(whole[: known * HOP] - part).max() > 1e-3


def test_the_same_latents_give_the_same_samples_and_pixels(picture, sound, episodes):
    video, audio = picture.encode(episodes[0].video_THWC), sound.encode(episodes[0].audio_N)
    assert np.array_equal(picture.decode(video), picture.decode(video))
    assert np.array_equal(sound.decode(audio), sound.decode(audio))


def test_strikes_are_heard_when_they_happen(sound, episodes):
    late_ms = []
    for episode in episodes:
        times_s = episode.truth.contact_times_s
        alone = [t for t in times_s if t > 0.1 and (np.abs(times_s - t) < 0.08).sum() == 1]
        decoded = sound.decode(sound.encode(episode.audio_N))
        late_ms.append(onset_errors_ms(episode.audio_N, decoded, alone, sample_rate=16000))
    found = np.abs(np.concatenate(late_ms))
    assert len(found) >= 20
    assert np.median(found) < 4


def test_silence_stays_silent_and_less_than_a_step_is_nothing(sound):
    assert np.abs(sound.decode(sound.encode(np.zeros(16000, np.float32)))).max() < 0.02
    assert sound.encode(np.zeros(249, np.float32)).shape == (0, 32)
    assert len(sound.decode(torch.zeros(0, 32))) == 0


def test_wrong_shapes_are_refused_in_words(picture, sound):
    with pytest.raises(ValueError, match="must be mono"):
        sound.encode(np.zeros((2, 1000), np.float32))
    with pytest.raises(ValueError, match="multiples of"):
        picture.encode(np.zeros((4, 60, 64, 3), np.uint8))


def test_changed_weights_are_noticed(tmp_path, sound):
    sound.save(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="content_hash"):
        load_codec(str(tmp_path))


def test_a_saved_codec_loads_as_it_was(tmp_path):
    torch.manual_seed(0)
    net = (
        SoundNet(SoundNetConfig(channels=8, encoder_width=16, decoder_width=16)).eval().requires_grad_(False)
    )
    net.load_state_dict({name: w.half().float() for name, w in net.state_dict().items()})
    from avtok.sound import spec_of

    codec = LearnedAudioCodec(spec_of(net, "small"), net, ("a.wav",))
    codec.save(tmp_path)
    loaded = load_codec(str(tmp_path))
    audio_N = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    assert torch.equal(codec.encode(audio_N), loaded.encode(audio_N))
    assert np.array_equal(codec.decode(codec.encode(audio_N)), loaded.decode(loaded.encode(audio_N)))
    assert loaded.trained_on == ("a.wav",)


def test_overlapping_windows_add_up_to_one():
    window = torch.hann_window(500)
    added = overlap_add(window.expand(1, 40, 500))
    assert added.shape == (1, 40 * 125)
    assert torch.allclose(added[:, 500:-500], torch.ones(1, 4000), atol=1e-5)


def test_the_spectral_loss_is_zero_for_the_same_and_grows_with_a_shift():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 8000, generator=generator) * 0.1
    assert float(multi_resolution_stft_loss(noise, noise)) == 0
    near, far = (float(multi_resolution_stft_loss(noise.roll(by, 1), noise)) for by in (4, 400))
    assert 0 < near < far
