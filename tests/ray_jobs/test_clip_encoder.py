"""Long clips are encoded piece by piece, in flat memory, to what they are as a whole."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avtok.decode import decode_clip
from avtok.devices import on_device
from avtok.load import load_codec
from avtok.mux import write_clip
from ray_jobs import clip_encoder
from ray_jobs.clip_encoder import ClipEncoder, Geometry
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources
from ray_jobs.plan import make_plan
from ray_jobs.tokenizer_measure import measure_folder
from tests.avtok.small_autoencoders import encodec, image, wan
from worldmodel.config import RunConfig
from worldmodel.load_config import load_config

FPS, RATE = 16, 16000
SHIPPED = [
    ("pca-4x8x8-48", "logmel-64"),
    ("patchconv-4x8x8-48", "spectral-32"),
]


def long_clip(path: Path, seconds: float) -> Path:
    """Moving stripes and a glide, so that every step differs."""
    times = np.arange(round(seconds * FPS)) / FPS
    columns = np.arange(64) / 64
    waves = 0.5 + 0.4 * np.sin(2 * np.pi * (3 * columns[None] + times[:, None]) + 0.7 * times[:, None] ** 2)
    frames = np.broadcast_to((255 * waves)[:, None, :, None], (len(times), 64, 64, 3)).astype(np.uint8)
    at = np.arange(round(seconds * RATE)) / RATE
    sound = (0.4 * np.sin(2 * np.pi * (200 + 40 * at) * at)).astype(np.float32)
    write_clip(path, frames.copy(), sound, fps=FPS, sample_rate=RATE)
    return path


def run_of(clip_s: float, video: str, audio: str) -> RunConfig:
    return load_config(
        None,
        [
            *(f"data.clip_s={clip_s}", "data.manifest=none", f"model.window_chunks={int(clip_s * 4)}"),
            *(f"codec.video={video}", f"codec.audio={audio}", "data.held_out=0", "data.sandbox=false"),
        ],
    )


def sample_of(path: Path, cfg: RunConfig, folder: Path):
    (folder / "m.jsonl").write_text(json.dumps({"video": str(path)}), "utf-8")
    index_sources([str(folder / "m.jsonl")], out=str(folder / "m.parquet"))
    return make_plan(str(folder / "m.parquet"), cfg).sample(0)


def geometry_of(encoder: ClipEncoder, cfg: RunConfig) -> Geometry:
    return Geometry.of(cfg.data.clip_s, cfg.data.size, cfg.data, encoder.video.spec, encoder.audio.spec)


def encoded(cfg: RunConfig, sample, piece_s: float, monkeypatch) -> dict[str, np.ndarray]:
    monkeypatch.setattr(clip_encoder, "PIECE_S", piece_s)
    encoder = ClipEncoder(cfg)
    return encoder.encode(sample, geometry_of(encoder, cfg))


def codecs_in(folder: Path) -> tuple[str, str]:
    torch.manual_seed(0)
    names = []
    for make, name in ((image, "video"), (encodec, "audio")):
        make().save_pretrained(str(folder / name))
        measure_folder(folder / name, fps=FPS, size_px=64)
        names.append(f"pretrained:{folder / name}")
    return names[0], names[1]


@pytest.mark.parametrize("codecs", [*SHIPPED, pytest.param("pretrained", marks=pytest.mark.slow)])
def test_a_clip_in_pieces_is_the_clip_as_a_whole(codecs, tmp_path, monkeypatch):
    if codecs == "pretrained":
        codecs = codecs_in(tmp_path)
    cfg = run_of(3.0, *codecs)
    sample = sample_of(long_clip(tmp_path / "long.mp4", 3.4), cfg, tmp_path)
    sample = replace(sample, valid_s=2.8)  # the last piece is short
    whole, pieces = (encoded(cfg, sample, piece_s, monkeypatch) for piece_s in (99.0, 1.0))
    assert whole.keys() == pieces.keys()
    for name in ("video_valid", "audio_valid"):
        assert np.array_equal(whole[name], pieces[name])
    assert 0.9 < whole["video_valid"].mean() < 1
    spread = {name: float(whole[name].astype(np.float32).std()) for name in ("video", "audio")}
    for name, most in spread.items():
        off = np.abs(whole[name].astype(np.float32) - pieces[name].astype(np.float32)).max()
        assert off < 0.02 * most, name  # half precision; recurrent layers remember a little more
    alone = decode_clip(
        sample.uri, start_s=1.0, end_s=2.0, fps=FPS, size=cfg.data.size, sample_rate=RATE
    ).audio_N
    bare = load_codec(codecs[1]).encode(alone).numpy()
    steps = len(whole["audio"]) // 3
    assert (
        np.abs(bare - whole["audio"][steps : 2 * steps]).max() > 0.1 * spread["audio"]
    )  # the context matters


@pytest.mark.slow
def test_a_video_autoencoder_in_pieces_is_as_near_to_the_whole_as_its_measured_context(tmp_path, monkeypatch):
    torch.manual_seed(0)
    wan().save_pretrained(str(tmp_path / "wan"))
    measure_folder(tmp_path / "wan", fps=FPS, size_px=64)
    cfg = run_of(6.0, f"pretrained:{tmp_path / 'wan'}", "logmel-64")
    sample = sample_of(long_clip(tmp_path / "long.mp4", 6.0), cfg, tmp_path)
    whole, pieces = (encoded(cfg, sample, piece_s, monkeypatch)["video"] for piece_s in (99.0, 2.0))
    monkeypatch.setattr(clip_encoder.ClipEncoder, "_context", lambda self: (0, 0))
    cut_off = encoded(cfg, sample, 2.0, monkeypatch)["video"]
    whole, pieces, cut_off = (array[8:].astype(np.float32) for array in (whole, pieces, cut_off))
    off, without = (np.square(whole - other).mean() ** 0.5 for other in (pieces, cut_off))
    assert 3 * off < without  # what is left reaches further back than the ten probed steps


def test_memory_does_not_grow_with_the_length_of_a_clip(tmp_path, monkeypatch):
    peaks = {}
    path = long_clip(tmp_path / "minute.mp4", 60.0)
    for clip_s, piece_s in ((8.0, 4.0), (60.0, 4.0), (60.0, 99.0)):
        monkeypatch.setattr(clip_encoder, "PIECE_S", piece_s)
        cfg = run_of(clip_s, "pca-4x8x8-48", "logmel-64")
        encoder, sample = ClipEncoder(cfg), sample_of(path, cfg, tmp_path)
        geometry = geometry_of(encoder, cfg)
        tracemalloc.start()
        arrays = encoder.encode(sample, geometry)
        peaks[clip_s, piece_s] = tracemalloc.get_traced_memory()[1] - sum(
            array.nbytes for array in arrays.values()
        )
        tracemalloc.stop()
        assert arrays["video_valid"].all()
    assert peaks[60.0, 4.0] < 1.2 * peaks[8.0, 4.0]
    assert peaks[60.0, 99.0] > 5 * peaks[60.0, 4.0]


@pytest.mark.parametrize("name", [name for pair in SHIPPED for name in pair])
def test_a_codec_moves_to_a_device_as_a_whole_and_its_latents_come_back(name):
    codec = load_codec(name)
    moved = on_device(codec, "meta")  # every tensor that stayed behind would meet one on another device
    given = (
        np.zeros((8, 64, 64, 3), np.uint8) if codec.spec.modality == "video" else np.zeros(4000, np.float32)
    )
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # its `.cpu()`, the last
        moved.encode(given)
    back = on_device(load_codec(name), "cpu")
    assert torch.equal(back.encode(given), load_codec(name).encode(given))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_encoding_on_a_gpu_that_is_not_there_says_what_to_set():
    with pytest.raises(UserError, match=r"sees no CUDA GPU; set data\.encode_gpus=0"):
        ClipEncoder(run_of(1.0, "pca-4x8x8-48", "logmel-64"), device="cuda")
