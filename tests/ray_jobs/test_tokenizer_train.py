import numpy as np
import pytest

from avtok.load import load_codec
from ray_jobs.errors import UserError
from ray_jobs.tokenizer_train import train_video_codec
from worldmodel.worlds.bounce import BounceSettings, simulate

RECIPE = {"fps": 16, "size_px": 64, "seed": 5}


def psnr_db(codec, frames_THWC):
    error = codec.decode(codec.encode(frames_THWC)).astype(float) - frames_THWC
    return 10 * np.log10(255**2 / np.square(error).mean())


def test_a_codec_fitted_on_the_world_shows_held_out_clips_and_more_components_show_more(tmp_path):
    held_out = simulate(BounceSettings(), seed=900, duration_s=2.0).video_THWC
    scores = []
    for components in (4, 48):
        facts = train_video_codec(
            ["bounce_one"], out=tmp_path / f"pca{components}", components=components, clips=4, **RECIPE
        )
        assert facts["clips"] == 4
        codec = load_codec(str(tmp_path / f"pca{components}"))
        assert codec.spec.channels == components
        scores.append(psnr_db(codec, held_out))
    assert scores[0] + 3 < scores[1]
    assert scores[1] > 27


def test_the_same_recipe_gives_the_same_codec(tmp_path):
    hashes = set()
    for name in ("a", "b"):
        train_video_codec(["bounce_one"], out=tmp_path / name / "pca", components=8, clips=2, **RECIPE)
        hashes.add(load_codec(str(tmp_path / name / "pca")).spec.content_hash)
    assert len(hashes) == 1


def test_an_empty_source_is_a_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        train_video_codec([str(tmp_path / "empty")], out=tmp_path / "pca", components=8, clips=2, **RECIPE)
