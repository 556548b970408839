"""Codecs from recipes: what they learn on the world holds on clips they have not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avtok.evaluate import psnr_db
from avtok.load import load_codec
from avtok.mux import write_clip
from ray_jobs.codec_recipe import CodecRecipe
from ray_jobs.errors import UserError
from ray_jobs.tokenizer_measure import measure_folder
from ray_jobs.tokenizer_train import train_codec
from worldmodel.load_config import load_as
from worldmodel.worlds.bounce import BounceSettings, simulate

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "codecs").glob("*.yaml"))
SMALL = CodecRecipe(sources=("bounce_one",), world_clips=3, seed=5, steps=30, batch=8)


def score_db(codec, frames_THWC) -> float:
    return psnr_db(frames_THWC, codec.decode(codec.encode(frames_THWC)))


@pytest.fixture(scope="module")
def held_out():
    return simulate(BounceSettings(), seed=900, duration_s=2.0)


def recipe(**changes) -> CodecRecipe:
    return SMALL.model_copy(update=changes)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_committed_recipe_loads_and_says_what_it_costs(path: Path):
    assert load_as(CodecRecipe, path, []).steps > 1000
    header = path.read_text().split("kind:")[0]
    assert "Hardware:" in header
    assert "Duration:" in header


def test_more_components_show_more_of_a_held_out_clip(tmp_path, held_out):
    scores = []
    for channels in (4, 48):
        facts = train_codec(recipe(channels=channels), [], out=tmp_path / f"pca{channels}")
        assert facts["sources"] == 1
        codec = load_codec(str(tmp_path / f"pca{channels}"))
        assert codec.spec.channels == channels
        scores.append(score_db(codec, held_out.video_THWC))
    assert scores[0] + 3 < scores[1]
    assert scores[1] > 27


@pytest.mark.parametrize("kind", ["pca", "picture", "sound"])
def test_the_same_recipe_gives_the_same_codec_and_another_seed_another(tmp_path, kind):
    hashes = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        small = recipe(kind=kind, channels=8, world_clips=2, steps=3, batch=2, seed=seed)
        train_codec(small, [], out=tmp_path / name)
        hashes.append(load_codec(str(tmp_path / name)).spec.content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_picture_network_improves_on_its_components(tmp_path, held_out):
    told = []
    small = recipe(kind="picture", channels=8, steps=40)
    train_codec(small, [], out=tmp_path / "net", say=lambda stage, info: told.append((stage, info)))
    train_codec(recipe(channels=8), [], out=tmp_path / "pca")
    network, components = (load_codec(str(tmp_path / name)) for name in ("net", "pca"))
    assert score_db(network, held_out.video_THWC) > score_db(components, held_out.video_THWC) + 0.3
    assert told[-1][1]["done"] == told[-1][1]["total"] == 40
    assert "psnr_db" in told[-1][1]["note"]


def test_a_sound_network_learns(tmp_path):
    losses = []
    small = recipe(kind="sound", channels=16, steps=25, batch=4, lr=4e-3)
    facts = train_codec(
        small, [], out=tmp_path / "net", say=lambda stage, info: losses.append(info.get("note", ""))
    )
    values = [float(note.split()[1]) for note in losses if note]
    assert facts["kind"] == "sound"
    assert np.mean(values[-5:]) < 0.6 * np.mean(values[:5])
    assert load_codec(str(tmp_path / "net")).trained_on == ("bounce_one:5-7",)


@pytest.mark.parametrize("kind", ["pca", "sound"])
def test_real_clips_are_used_but_those_left_out_are_not(tmp_path, held_out, kind):
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("seen.mp4", "kept_1.mp4"):
        write_clip(clips / name, held_out.video_THWC, held_out.audio_N, fps=16, sample_rate=16000)
    (clips / "broken.mp4").write_bytes(b"no media")
    small = recipe(kind=kind, sources=(), leave_out=("kept_*",), channels=8, steps=2, batch=2)
    facts = train_codec(small, [str(clips)], out=tmp_path / "codec")
    assert facts["sources"] == 1
    assert load_codec(str(tmp_path / "codec")).trained_on == ("clips/seen.mp4",)


def test_nothing_to_train_on_is_a_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        train_codec(recipe(sources=()), [str(tmp_path / "empty")], out=tmp_path / "codec")
    with pytest.raises(UserError, match="no sources"):
        train_codec(recipe(sources=()), [], out=tmp_path / "codec")


def test_measuring_what_is_no_autoencoder_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="give the folder of a diffusers or transformers autoencoder"):
        measure_folder(tmp_path, fps=16, size_px=64)
