"""The causal stem: one chunk back, near patches only, nothing of noise or of absent media."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.worldmodel.synthetic import tiny_config, tiny_layout
from worldmodel.flow import wiener_factor
from worldmodel.layout import Layout
from worldmodel.model.stem import CausalStem, Estimate, neighbourhoods
from worldmodel.model.transformer import WorldTransformer


@pytest.fixture
def layout() -> Layout:
    return replace(tiny_layout(tiny_config()), video_grid=(4, 5)).of(num_chunks=5, text=True)


def estimate(layout: Layout, *, video_t: float = 0.0, audio_t: float = 0.0, valid: bool = True) -> Estimate:
    generator = torch.Generator().manual_seed(0)
    channels = layout.video_channels * layout.patch[0] * layout.patch[1]
    video = torch.randn(1, layout.num_chunks, layout.video_tokens, channels, generator=generator)
    audio = torch.randn(1, layout.num_chunks, layout.audio_steps, layout.audio_channels, generator=generator)
    there = torch.tensor(valid)
    return Estimate.of(video, torch.tensor(video_t), there, audio, torch.tensor(audio_t), there)


def test_a_token_sees_the_nine_patches_around_it_one_chunk_ago_and_no_others(layout: Layout):
    seen = estimate(layout)
    seen.video_BNVC.requires_grad_()
    stem = CausalStem(seen.video_BNVC.shape[-1], layout.audio_channels, 32)
    out = stem(seen, None, layout)
    at = layout.text_tokens + 3 * layout.tokens_per_chunk + 1 + 2 * 5 + 1  # chunk 3, row 2, column 1
    out[0, at].sum().backward()
    assert seen.video_BNVC.grad is not None
    reached = seen.video_BNVC.grad[0].abs().amax(-1).nonzero().tolist()
    assert reached == [[2, row * 5 + column] for row in (1, 2, 3) for column in (0, 1, 2)]


def test_beyond_the_picture_there_is_nothing(layout: Layout):
    ones = torch.ones(1, layout.num_chunks, layout.video_tokens, 2)
    counts = neighbourhoods(ones, layout)[0, 0].sum(-1).reshape(4, 5) / 2
    assert counts.tolist() == [[4, 6, 6, 6, 4], [6, 9, 9, 9, 6], [6, 9, 9, 9, 6], [4, 6, 6, 6, 4]]


def test_a_sound_step_sees_the_same_step_one_chunk_ago(layout: Layout):
    seen = estimate(layout)
    seen.audio_BNTC.requires_grad_()
    stem = CausalStem(seen.video_BNVC.shape[-1], layout.audio_channels, 32)
    at = layout.text_tokens + layout.tokens_per_chunk + 1 + layout.video_tokens + 2  # chunk 1, step 2
    stem(seen, None, layout)[0, at].sum().backward()
    assert seen.audio_BNTC.grad is not None
    assert seen.audio_BNTC.grad[0].abs().amax(-1).nonzero().tolist() == [[0, 2]]


def test_the_first_chunk_sees_what_came_before_the_forward(layout: Layout):
    seen = estimate(layout)
    stem = CausalStem(seen.video_BNVC.shape[-1], layout.audio_channels, 32)
    whole = stem(seen, None, layout)
    tail = Estimate(seen.video_BNVC[:, 2:], seen.audio_BNTC[:, 2:])
    before = Estimate(seen.video_BNVC[:, :2], seen.audio_BNTC[:, :2]).last()
    later = stem(tail, before, layout.of(num_chunks=3, text=False))
    assert torch.allclose(later, whole[:, -3 * layout.tokens_per_chunk :], atol=1e-6)


def test_pure_noise_and_absent_media_pass_nothing_and_clean_data_passes_whole(layout: Layout):
    assert not estimate(layout, video_t=1.0).video_BNVC.any()
    assert not estimate(layout, valid=False).audio_BNTC.any()
    clean = estimate(layout)
    assert torch.equal(clean.video_BNVC, estimate(layout).video_BNVC)
    assert clean.video_BNVC.std() == pytest.approx(1, abs=0.05)


def test_the_wiener_factor_is_the_best_linear_guess():
    generator = torch.Generator().manual_seed(1)
    data, noise = torch.randn(2, 200_000, generator=generator)
    for t in (0.1, 0.5, 0.8):
        noisy = (1 - t) * data + t * noise
        best = (noisy @ data) / (noisy @ noisy)
        assert float(wiener_factor(torch.tensor(t))) == pytest.approx(float(best), abs=0.01)


def test_a_window_of_one_chunk_has_no_stem():
    cfg = tiny_config(model={"window_chunks": 1})
    assert WorldTransformer(cfg.model, tiny_layout(cfg)).stem is None
    assert WorldTransformer(tiny_config().model, tiny_layout(tiny_config())).stem is not None
