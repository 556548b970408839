"""Row modes, contexts and clean modalities: which tokens learn, and at which noise."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from tests.worldmodel.synthetic import many_levels, tiny_config, tiny_layout
from worldmodel.config import NoiseConfig, SelfFlowConfig
from worldmodel.flow import sample_levels
from worldmodel.layout import ACTION, AUDIO, TEXT, VIDEO
from worldmodel.randomness import SampleRandom

# B clips, L tokens, N chunks, M modalities, K noise levels of a row.


def test_condition_and_context_tokens_carry_neither_loss_nor_mask():
    layout = tiny_layout(tiny_config(data={"clip_s": 1.0}))
    noise = NoiseConfig(history_rows=1, independent_rows=0, tied=1, independent=0)
    levels = many_levels(layout, noise)
    condition_L = (layout.modality_L == TEXT) | (layout.modality_L == ACTION)
    assert not levels.loss_BL[:, condition_L].any()
    assert not levels.masked_BL[:, condition_L].any()
    assert (levels.per_token(levels.student_BK)[:, condition_L] == 0).all()
    assert not (levels.masked_BL & ~levels.loss_BL).any()
    context_BL = ~levels.loss_BL & ~condition_L
    t_BL = levels.per_token(levels.student_BK)
    assert t_BL[context_BL].max() <= noise.context_noise
    assert torch.equal(t_BL[context_BL], levels.per_token(levels.cleaner_BK)[context_BL])
    assert context_BL[:, (layout.chunk_L == 0) & ~condition_L].float().mean() == pytest.approx(
        noise.context_chunk, abs=0.04
    )
    assert levels.loss_BL.any(dim=1).all()  # no row is context only


def test_rows_come_in_the_configured_shares():
    layout = tiny_layout(tiny_config(data={"clip_s": 1.0}))
    levels = many_levels(layout, NoiseConfig())
    media_L = (layout.modality_L == VIDEO) | (layout.modality_L == AUDIO)
    table = rearrange(levels.student_BK[:, :-2], "b (n m pair) -> b n m pair", n=4, m=2)
    clean_video_B = (table[:, :, 0] == 0).flatten(1).all(1)
    clean_audio_B = (table[:, :, 1] == 0).flatten(1).all(1)
    assert clean_video_B.float().mean() == pytest.approx(0.1, abs=0.02)
    assert clean_audio_B.float().mean() == pytest.approx(0.1, abs=0.02)
    mixed_B = ~clean_video_B & ~clean_audio_B
    has_context_B = (~levels.loss_BL & media_L).any(dim=1)
    assert has_context_B[mixed_B].float().mean() == pytest.approx(0.6 * (1 - 0.4**4), abs=0.04)
    same_everywhere_B = (table[:, :, 0] == table[:, :1, 0]).flatten(1).all(1)
    assert same_everywhere_B[mixed_B].float().mean() == pytest.approx(0.1, abs=0.02)
    # A context chunk has one level for both modalities, so look at rows that have none.
    free_B = mixed_B & ~has_context_B
    tied_B = (table[:, :, 0] == table[:, :, 1]).flatten(1).all(1)
    assert tied_B[free_B].float().mean() == pytest.approx(0.5 / 0.8, abs=0.05)


def test_a_clean_modality_is_a_condition_and_the_other_one_learns(layout):
    levels = many_levels(layout, NoiseConfig(history_rows=0, independent_rows=1, tied=0, independent=0))
    video_L, audio_L = layout.modality_L == VIDEO, layout.modality_L == AUDIO
    learns_video_B, learns_audio_B = levels.loss_BL[:, video_L].any(1), levels.loss_BL[:, audio_L].any(1)
    assert (learns_video_B ^ learns_audio_B).all()
    assert learns_video_B.float().mean() == pytest.approx(0.5, abs=0.04)
    t_BL = levels.per_token(levels.student_BK)
    assert (t_BL[~learns_video_B][:, video_L] == 0).all()
    assert levels.loss_BL[learns_audio_B][:, audio_L].all()


def test_a_sample_draws_the_same_noise_on_any_rank_and_in_any_slot(layout):
    cfg = SelfFlowConfig()
    together = sample_levels(layout, cfg, SampleRandom(3, 1, (10, 11, 12)))
    alone = sample_levels(layout, cfg, SampleRandom(3, 1, (12,)))
    for field in ("student_BK", "cleaner_BK", "level_of_BL", "loss_BL", "masked_BL"):
        assert torch.equal(getattr(together, field)[2:], getattr(alone, field))
    later = sample_levels(layout, cfg, SampleRandom(3, 2, (12,)))
    assert not torch.equal(later.student_BK, alone.student_BK)
