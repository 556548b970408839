"""Clips of embedded worlds as latents: the stream resumes anywhere, and models are checked without files."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from avtok.load import codec_spec, load_codec
from worldmodel.checks.of_model import check_model, history_error
from worldmodel.config import RunConfig
from worldmodel.flow import homogeneous_levels
from worldmodel.layout import AUDIO, VIDEO, Layout
from worldmodel.model.transformer import WorldTransformer
from worldmodel.worlds.clips import WorldClips, make_clips

PICTURE_CODEC, SOUND_CODEC = "pca-4x8x8-48", "logmel-64"


@pytest.fixture(scope="module")
def cfg() -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"clip_s": 1.0, "batch_clips": 2},
            "codec": {"video": PICTURE_CODEC, "audio": SOUND_CODEC},
            "model": {"depth": 2, "width": 32, "head_dim": 16},
            "train": {"micro_batches": 2},
            "rollout": {"prefix_s": 0.5, "seconds": 0.5, "steps": 2, "sessions_per_actor": 3},
        }
    )


@pytest.fixture(scope="module")
def codecs():
    return load_codec(PICTURE_CODEC), load_codec(SOUND_CODEC)


@pytest.fixture(scope="module")
def clips(cfg, codecs) -> WorldClips:
    return make_clips("pusher", range(7), cfg, *codecs)


@pytest.fixture(scope="module")
def model(cfg) -> WorldTransformer:
    torch.manual_seed(0)
    layout = Layout.from_specs(cfg, codec_spec(PICTURE_CODEC), codec_spec(SOUND_CODEC))
    return WorldTransformer(cfg.model, layout).eval().requires_grad_(False)


def ids(steps: list) -> list[list[int]]:
    return [[int(i) for batch in step for i in batch.sample_ids_B] for step in steps]


def test_any_part_of_a_set_is_made_alike(cfg, codecs, clips):
    part = make_clips("pusher", range(4, 7), cfg, *codecs)
    whole = WorldClips.join([make_clips("pusher", range(4), cfg, *codecs), part])
    for name in WorldClips.__annotations__:
        assert np.array_equal(getattr(whole, name), getattr(clips, name)), name


def test_a_batch_fits_the_layout_and_has_actions_where_the_world_has(cfg, codecs, clips, model):
    batch = clips.batch([0, 3], cfg, epoch=0, batch_id=0)
    packed = model.layout.pack_video(batch.video.latents)
    assert packed.shape[:3] == (2, model.layout.num_chunks, model.layout.video_tokens)
    assert model.layout.pack_audio(batch.audio.latents).shape[2] == model.layout.audio_steps
    assert batch.actions_valid_BF.all()
    assert float(batch.actions_BFA.abs().max()) > 0
    assert (batch.text_BN > 0).any()
    without = make_clips("bounce_one", range(2), cfg, *codecs).batch([0, 1], cfg, epoch=0, batch_id=0)
    assert not without.actions_valid_BF.any()


def test_an_epoch_has_each_clip_at_most_once_and_another_order_than_the_next(cfg, clips):
    steps = ids(list(islice(clips.stream(cfg), 3)))
    batches = [step[start : start + 2] for step in steps for start in (0, 2)]  # 3 micro-batches an epoch
    first, second = np.concatenate(batches[:3]).tolist(), np.concatenate(batches[3:]).tolist()
    assert len(set(first)) == len(set(second)) == 6
    assert first != second


def test_the_stream_goes_on_from_any_step(cfg, clips):
    whole = ids(list(islice(clips.stream(cfg), 8)))
    assert ids(list(islice(clips.stream(cfg, start_step=5), 3))) == whole[5:]


def test_too_few_clips_and_other_rates_are_refused(cfg, codecs, clips):
    large = cfg.model_copy(update={"data": cfg.data.model_copy(update={"batch_clips": 8})})
    with pytest.raises(ValueError, match="7 clips do not fill a micro-batch of 8"):
        next(clips.stream(large))
    fast = cfg.model_copy(update={"data": cfg.data.model_copy(update={"fps": 32})})
    with pytest.raises(ValueError, match="the config asks for"):
        make_clips("bounce", range(1), fast, *codecs)


def test_a_model_is_rolled_out_and_checked_in_one_process(cfg, codecs, model):
    seeds = range(100, 105)
    result, again = (check_model(model, cfg, *codecs, world="bounce_one", seeds=seeds) for _ in range(2))
    assert result == again
    assert result["episodes"] == 5
    position = result["checks"]["position_error"]
    assert position["floor"] < 0.01
    assert position["value"] > position["floor"]
    one_by_one = check_model(
        model,
        cfg.model_copy(update={"rollout": cfg.rollout.model_copy(update={"sessions_per_actor": 1})}),
        *codecs,
        world="bounce_one",
        seeds=seeds,
    )
    ours, theirs = (r["checks"]["colour_drift"]["value"] for r in (result, one_by_one))
    assert ours == pytest.approx(theirs, abs=1e-3)  # what a session does is its own seed's


def test_history_error_knows_what_predicting_nothing_costs(cfg, clips, model):
    error = history_error(model, clips.batches(cfg, num_clips=6), cfg)
    assert error["nothing"] == pytest.approx(
        float(np.square(clips.video_ETHWC[:6, -1].astype(np.float32)).mean()), rel=0.01
    )
    assert error["silence"] == pytest.approx(
        float(np.square(clips.audio_ETC[:6, -16:].astype(np.float32)).mean()), rel=0.01
    )
    # An untrained model predicts zeros, whether it sees the past or not.
    assert error["with_history"] == pytest.approx(error["without"], rel=1e-4)
    assert error["with_history"] == pytest.approx(error["nothing"], rel=1e-3)
    assert error["sound_with_picture"] == pytest.approx(error["silence"], rel=1e-3)


def test_a_clean_picture_is_given_and_not_learned(cfg, model):
    layout = model.layout
    levels = homogeneous_levels(layout, 2, 0.9, context_chunks=1, clean_video=True)
    t_BL = levels.per_token(levels.student_BK)
    later_L = layout.chunk_L >= 1
    assert (t_BL[:, layout.modality_L == VIDEO] == 0).all()
    assert (t_BL[:, (layout.modality_L == AUDIO) & later_L] == 0.9).all()
    assert torch.equal(levels.loss_BL[0], (layout.modality_L == AUDIO) & later_L)
