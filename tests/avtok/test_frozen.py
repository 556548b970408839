"""Features of frozen encoders lie on the grid of latent steps and tokens, where and when they saw it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, reduce

from avtok.frozen import NotAnEncoder, hash_of_folder, load_frozen
from tests.avtok.small_autoencoders import image
from tests.avtok.small_encoders import clip, dino, masked, spectrogram, swin, videomae, wav2vec, whisper

RATE = 16000


def frames(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "make",
    [dino, partial(dino, kind="Dinov2WithRegisters"), partial(dino, kind="DINOv3ViT"), clip, swin],
    ids=["dinov2", "registers", "dinov3", "clip", "swin"],
)
def test_features_of_a_picture_lie_where_it_was_changed(make, tmp_path):
    encoder = load_frozen(make(tmp_path), "video")
    plain = frames(8)
    changed = plain.copy()
    changed[4:, 32:, 64:] = 255 - changed[4:, 32:, 64:]  # second step, lower right
    features = [encoder.encode(video, [4, 4], (4, 6)) for video in (plain, changed)]
    assert features[0].shape == (2, 4, 6, 16)
    assert features[0].dtype == torch.float32
    change_THW = (features[0] - features[1]).norm(dim=-1)
    assert not change_THW[0].any()
    place = np.unravel_index(int(change_THW[1].argmax()), (4, 6))
    assert place[0] >= 2
    assert place[1] >= 4


def test_features_are_those_of_the_model_itself_averaged_over_the_frames_of_a_step(tmp_path):
    from transformers import Dinov2Model

    video = np.repeat(np.repeat(frames(3, 32, 32), 2, 1), 2, 2)
    features = load_frozen(dino(tmp_path), "video").encode(video, [1, 2], (4, 4))
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    pixels = rearrange(torch.from_numpy(video).float() / 255, "f h w c -> f c h w")
    pixels = F.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        normal = (pixels - mean[:, None, None]) / std[:, None, None]
        hidden = Dinov2Model.from_pretrained(str(tmp_path)).eval()(normal).last_hidden_state[:, 1:]
    expected = rearrange(hidden, "f (h w) d -> f h w d", h=4)
    assert torch.allclose(features[0], expected[0], atol=1e-4)
    assert torch.allclose(features[1], reduce(expected[1:], "f h w d -> h w d", "mean"), atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [wav2vec, partial(wav2vec, kind="Hubert"), whisper, spectrogram],
    ids=["wav2vec2", "hubert", "whisper", "spectrogram"],
)
def test_features_of_a_sound_change_when_it_was_changed(make, tmp_path):
    encoder = load_frozen(make(tmp_path), "audio")
    plain = (0.1 * np.random.default_rng(0).standard_normal(2 * RATE)).astype(np.float32)
    changed = plain.copy()
    changed[round(1.4 * RATE) : round(1.6 * RATE)] *= -3
    features = [encoder.encode(sound, RATE, 1 / 64, 128) for sound in (plain, changed)]
    assert features[0].shape == (128, 16)
    change_T = (features[0] - features[1]).norm(dim=-1)
    nearby_T = change_T.unfold(0, 9, 1).mean(-1)  # attention carries a little of it everywhere
    most_s = (int(nearby_T.argmax()) + 4.5) / 64
    assert 1.4 <= most_s <= 1.6


def test_a_feature_of_sound_stands_in_the_middle_of_what_its_convolutions_saw(tmp_path):
    encoder = load_frozen(wav2vec(tmp_path), "audio")
    _, times = encoder._in_time(torch.zeros(50, 16))
    assert times[:2].tolist() == pytest.approx([(10 + 2 * 80) / 2 / RATE, (320 + 85) / RATE])
    slope = encoder.encode(np.zeros(RATE, np.float32), RATE, 1 / 64, 64)
    assert torch.isfinite(slope).all()


def test_sound_of_another_rate_is_resampled(tmp_path):
    encoder = load_frozen(wav2vec(tmp_path), "audio")
    at = np.arange(2 * RATE) / RATE
    tone = np.sin(2 * np.pi * 300 * at).astype(np.float32)
    halved, own = (
        encoder.encode(sound, rate, 1 / 50, 100) for sound, rate in ((tone[::2], RATE // 2), (tone, RATE))
    )
    assert torch.nn.functional.cosine_similarity(halved, own).mean() > 0.98


def test_a_folder_that_is_no_such_encoder_is_named(tmp_path):
    image().save_pretrained(str(tmp_path / "autoencoder"))
    dino(tmp_path / "dino")
    wav2vec(tmp_path / "wav2vec")
    for folder, modality, said in (
        ("missing", "video", "FileNotFoundError; give the folder of a transformers encoder"),
        ("autoencoder", "video", "preprocessor_config.json"),
        ("dino", "audio", "dinov2 is no encoder of sound; give one, or modality: video"),
        ("wav2vec", "video", "wav2vec2 is no encoder of pictures; give one, or modality: audio"),
    ):
        with pytest.raises(NotAnEncoder, match=said) as raised:
            load_frozen(tmp_path / folder, modality)
        assert str(tmp_path / folder) in str(raised.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            videomae,
            r"VideoMAEModel takes no picture of 32x32 pixels \(ValueError: .*\); give a vision encoder",
        ),
        (
            masked,
            r"ViTMAEModel gives 5 tokens for a picture of 32x32 pixels, which is 4x4 patches; give a vis",
        ),
    ],
)
def test_a_model_without_a_grid_of_tokens_is_refused_when_it_is_loaded(make, said, tmp_path):
    with pytest.raises(NotAnEncoder, match=said) as raised:
        load_frozen(make(tmp_path), "video")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path}: ")


def test_a_model_of_sound_without_features_in_time_is_refused_when_it_is_loaded(tmp_path):
    import transformers

    codec = transformers.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_dim=16, upsampling_ratios=[8, 4]
    )
    transformers.EncodecModel(codec).save_pretrained(str(tmp_path))
    transformers.EncodecFeatureExtractor().save_pretrained(str(tmp_path))
    said = r"EncodecModel gives no features in time for a second of silence at 24000 Hz \(AttributeError: "
    with pytest.raises(NotAnEncoder, match=said):
        load_frozen(tmp_path, "audio")


def test_the_hash_follows_weights_and_preprocessing(tmp_path):
    hashes = [hash_of_folder(dino(tmp_path / "a")), hash_of_folder(dino(tmp_path / "b"))]
    assert hashes[0] == hashes[1]
    settings = tmp_path / "b" / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.5", "0.6"))
    assert hash_of_folder(tmp_path / "b") != hashes[0]
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert hash_of_folder(tmp_path / "a") != hashes[0]
