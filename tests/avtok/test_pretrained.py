"""Autoencoders of diffusers and transformers as codecs: geometry comes from probes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avtok.load import codec_spec, load_codec
from avtok.measure import measure
from avtok.pretrained import NotACodec
from avtok.spec import CodecSpec
from tests.avtok.small_autoencoders import cosmos, dac, encodec, image, ltx2, oobleck, wan

SIZE, FPS = (32, 32), 16
RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 255, (32, *SIZE, 3), dtype=np.uint8)]


def sounds(rate_hz: int) -> list[np.ndarray]:
    return [RNG.uniform(-0.5, 0.5, 2 * rate_hz).astype(np.float32)]


VIDEO = {"wan": (wan, 4, (8, 8), 4), "ltx2": (ltx2, 8, (32, 32), 8), "cosmos": (cosmos, 8, (8, 8), 4)}
VIDEO |= {"image": (image, 1, (2, 2), 4)}
AUDIO = {"oobleck": (oobleck, 40, 4), "dac": (dac, 250, None), "encodec": (encodec, 250, 12)}


def saved(make: Callable, folder: Path) -> Path:
    torch.manual_seed(0)
    make().save_pretrained(str(folder))
    return folder


def measured(folder: Path) -> CodecSpec:
    return measure(folder, fps=FPS, size=SIZE, pictures=PICTURES, sounds=sounds)


@pytest.mark.parametrize("name", VIDEO)
def test_a_video_autoencoder_becomes_a_codec_of_measured_geometry(name: str, tmp_path: Path):
    make, stride, spatial, channels = VIDEO[name]
    size = (64, 64) if name == "ltx2" else SIZE
    pictures = [RNG.integers(0, 255, (4 * stride, *size, 3), dtype=np.uint8)]
    folder = saved(make, tmp_path / name)
    spec = measure(folder, fps=FPS, size=size, pictures=pictures, sounds=sounds)
    assert (spec.stride_units, spec.first_units, spec.spatial_stride) == (stride, stride, spatial)
    assert (spec.channels, spec.rate_hz, spec.modality) == (channels, FPS, "video")
    assert spec.look_ahead_units == 0  # all of them are causal in time
    assert codec_spec(f"pretrained:{folder}") == codec_spec(str(folder)) == spec
    codec = load_codec(f"pretrained:{folder}")
    latents = codec.encode(pictures[0])
    assert tuple(latents.shape) == spec.latent_shape(4, size)
    assert float(latents.square().mean().sqrt()) == pytest.approx(1, abs=1e-3)
    assert torch.equal(latents, codec.encode(pictures[0]))
    decoded = codec.decode(latents)
    assert decoded.shape == pictures[0].shape
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("name", AUDIO)
def test_a_sound_autoencoder_becomes_a_codec_of_measured_geometry(name: str, tmp_path: Path):
    make, hop, channels = AUDIO[name]
    folder = saved(make, tmp_path / name)
    spec = measured(folder)
    assert (spec.stride_units, spec.rate_hz, spec.modality) == (hop, 16000, "audio")
    assert channels is None or spec.channels == channels
    codec = load_codec(str(folder))
    audio_N = sounds(16000)[0]
    latents = codec.encode(audio_N)
    assert tuple(latents.shape) == (len(audio_N) // hop, spec.channels)
    assert codec.decode(latents).shape == (len(audio_N) // hop * hop,)
    assert (spec.look_ahead_units == 0) == (name == "encodec")  # the only causal one of the three


def test_a_cut_with_its_measured_context_equals_the_cut_of_the_whole(tmp_path: Path):
    folder = saved(image, tmp_path / "image")
    spec = measured(folder)
    codec = load_codec(str(folder))
    whole = codec.encode(PICTURES[0])
    start = 12
    cut = codec.encode(PICTURES[0][start - spec.left_context_units : 20])
    skipped = spec.left_context_units // spec.stride_units
    assert torch.allclose(cut[skipped:], whole[start : start + 8], atol=1e-4)


def test_a_causal_sound_codec_needs_no_more_than_its_context(tmp_path: Path):
    folder = saved(encodec, tmp_path / "encodec")
    spec = measured(folder)
    codec = load_codec(str(folder))
    audio_N = sounds(16000)[0]
    context = spec.left_context_units
    start = 16000
    cut = codec.encode(audio_N[start - context : start + 2500], context_samples=context)
    whole = codec.encode(audio_N)[start // 250 : start // 250 + 10]
    assert cut.shape == whole.shape
    # Its recurrent layer forgets, but never whole: what is left lies far below what a listener would notice.
    assert float((cut - whole).abs().max()) < 0.05


def test_an_unmeasured_folder_says_what_to_do(tmp_path: Path):
    folder = saved(image, tmp_path / "image")
    with pytest.raises(
        ValueError, match=f"has not been measured; run `worldmodel tokenizer measure {folder}"
    ):
        codec_spec(f"pretrained:{folder}")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "FileNotFoundError; give the folder of a diffusers or transformers autoencoder"),
        ({"_class_name": "UNet2DModel"}, "no autoencoder of RGB pictures|from_pretrained|no file"),
        ({"_class_name": "AutoencoderOfTomorrow"}, "has no class 'AutoencoderOfTomorrow'"),
        ({"architectures": []}, "has no class ''"),
    ],
)
def test_what_is_no_autoencoder_is_refused(config: dict | None, message: str, tmp_path: Path):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((NotACodec, OSError), match=message):
        measured(tmp_path)
