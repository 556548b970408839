"""Tokens, masks and positions, seen through the real attention and the real transformer."""

from __future__ import annotations

import pytest
import torch

from avtok.load import codec_spec
from avtok.spec import CodecSpec
from tests.worldmodel.synthetic import (
    AUDIO_SPEC,
    VIDEO_SPEC,
    make_batch,
    open_gates,
    tiny_config,
    tiny_layout,
)
from worldmodel.config import RunConfig, SelfFlowConfig
from worldmodel.draw import draw
from worldmodel.flow import homogeneous_levels
from worldmodel.layout import ACTION, AUDIO, TEXT, VIDEO, Layout
from worldmodel.model.attention import Attention
from worldmodel.model.rope import Rotary, rotary_angles
from worldmodel.model.transformer import WorldTransformer
from worldmodel.model.visibility import Visibility
from worldmodel.randomness import SampleRandom

# B clips, L tokens, N chunks, F frames, A action width, D width.


@pytest.fixture
def long_layout() -> Layout:
    """Eight chunks: more than window and sink together."""
    return tiny_layout(tiny_config()).of(num_chunks=8, text=True)


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(32, 16)


def reached_by(attention: Attention, layout: Layout, query_L: torch.Tensor, **window: int) -> torch.Tensor:
    x_BLD = torch.randn(1, layout.length, 32, requires_grad=True)
    everything = torch.ones(1, layout.length, dtype=torch.bool)
    visibility = Visibility.by_bias(layout.window_mask_LL(**window), everything, x_BLD.dtype)
    attended, _ = attention(x_BLD, Rotary.of(rotary_angles(layout.positions_L3, 16), x_BLD.dtype), visibility)
    attended[:, query_L].sum().backward()
    assert x_BLD.grad is not None
    return x_BLD.grad.abs().amax(dim=(0, 2)) > 0


@pytest.mark.parametrize(("window", "sink"), [(1, 0), (1, 1), (3, 0), (3, 1), (3, 2), (8, 1)])
def test_a_chunk_reaches_exactly_its_window_the_sinks_and_the_text(attention, long_layout, window, sink):
    chunk_L = long_layout.chunk_L
    for chunk in (0, 4, 7):
        reached_L = reached_by(
            attention, long_layout, chunk_L == chunk, window_chunks=window, sink_chunks=sink
        )
        in_window_L = (chunk_L <= chunk) & ((chunk_L > chunk - window) | (chunk_L < sink))
        assert torch.equal(reached_L, in_window_L | (chunk_L == -1))


def test_text_reaches_only_text(attention, long_layout):
    is_text_L = long_layout.modality_L == TEXT
    assert torch.equal(
        reached_by(attention, long_layout, is_text_L, window_chunks=8, sink_chunks=8), is_text_L
    )


@pytest.mark.parametrize(("stem", "reached"), [(False, [2, 3, 4]), (True, [1, 2, 3, 4])])
def test_the_whole_transformer_never_looks_ahead_and_reaches_depth_windows_back(stem: bool, reached: list):
    cfg = tiny_config(model={"depth": 2, "window_chunks": 2, "sink_chunks": 0, "causal_stem": stem})
    layout = tiny_layout(cfg).of(num_chunks=6, text=True)
    torch.manual_seed(0)
    model = WorldTransformer(cfg.model, layout)
    open_gates(model)
    batch = make_batch(layout)
    batch.video.latents.requires_grad_()
    batch.audio.latents.requires_grad_()
    one = draw(
        batch, layout, SelfFlowConfig(), SampleRandom(0, 0, (0, 1, 2, 3)), homogeneous_levels(layout, 4, 0.5)
    )
    tokens, _, _ = one.tokens_at(one.levels.student_BK)
    out = model(tokens, one.levels.student_BK, one.levels.level_of_BL)
    out["video"][:, 4].sum().backward()
    for latents in (batch.video.latents, batch.audio.latents):
        assert latents.grad is not None
        reached_N = latents.grad.reshape(4, 6, -1).abs().amax(dim=(0, 2)) > 0
        assert reached_N.nonzero().flatten().tolist() == reached  # 2 blocks, 1 chunk back each; stem 1 more


def test_an_absent_clip_is_seen_by_none_and_stays_finite(model, layout):
    present, absent = make_batch(layout), make_batch(layout, has_audio=False)
    outputs = []
    for noise_of_absent in (0.0, 100.0):
        one = draw(
            absent,
            layout,
            SelfFlowConfig(),
            SampleRandom(0, 0, (0, 1, 2, 3)),
            homogeneous_levels(layout, 4, 0.5),
        )
        one.audio_noise.mul_(noise_of_absent)
        tokens, _, _ = one.tokens_at(one.levels.student_BK)
        outputs.append(model(tokens, one.levels.student_BK, one.levels.level_of_BL))
    assert torch.equal(outputs[0]["video"], outputs[1]["video"])
    assert torch.isfinite(outputs[1]["audio"]).all()
    one = draw(
        present,
        layout,
        SelfFlowConfig(),
        SampleRandom(0, 0, (0, 1, 2, 3)),
        homogeneous_levels(layout, 4, 0.5),
    )
    tokens, _, _ = one.tokens_at(one.levels.student_BK)
    heard = model(tokens, one.levels.student_BK, one.levels.level_of_BL)
    assert not torch.allclose(heard["video"], outputs[0]["video"], atol=1e-3)


def test_the_action_token_of_a_chunk_holds_the_actions_that_led_into_its_frames(layout):
    frames = layout.num_chunks * layout.chunk_frames
    # action[i] takes frame i to i + 1; number them from 1 so that "none" is 0.
    actions_BFA = (torch.arange(frames) + 1.0)[None, :, None].expand(1, -1, 2)
    packed = layout.pack_actions(actions_BFA)[..., ::2]
    assert packed.tolist() == [
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    ]  # chunk 1 holds frames 4..7: actions 3..6 led there


def test_a_chunk_knows_its_actions_when_those_that_led_into_it_are_known(layout):
    valid_BF = torch.ones(3, 8, dtype=torch.bool)
    valid_BF[0, 7] = False  # leads out of the clip
    valid_BF[1, 3] = False  # takes frame 3 to 4, the first of chunk 1
    valid_BF[2] = False
    assert layout.pack_actions_valid(valid_BF).tolist() == [[True, True], [True, False], [False, False]]


def test_packing_and_unpacking_are_inverse():
    layout = tiny_layout(tiny_config(data={"size": [16, 48]})).of(num_chunks=3, text=False)
    assert layout.video_grid == (1, 3)
    video, audio = torch.randn(2, 3, 2, 6, 6), torch.randn(2, 12, 5)
    assert torch.equal(layout.unpack_video(layout.pack_video(video)), video)
    assert torch.equal(layout.unpack_audio(layout.pack_audio(audio)), audio)
    packed = layout.pack_video(video)
    assert torch.equal(
        packed[0, 1, 2].reshape(2, 2, 6), video[0, 1, :, 4:6]
    )  # token 2 is the third 2x2 patch


def test_a_chunk_of_the_default_model_with_the_shipped_codecs_is_at_most_40_tokens():
    cfg = RunConfig()
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    assert layout.chunk_s == 0.25
    assert layout.tokens_per_chunk <= 40
    assert layout.length == 24 + 8 * layout.tokens_per_chunk
    assert len(layout.modality_L) == len(layout.chunk_L) == len(layout.positions_L3) == layout.length


def test_positions_are_seconds_of_the_middle_of_a_token_and_its_row_and_column(layout):
    video = layout.positions_L3[layout.modality_L == VIDEO]
    assert video[:4].tolist() == [[0.125, 0, 0], [0.125, 0, 1], [0.125, 1, 0], [0.125, 1, 1]]
    assert video[4:, 0].tolist() == [0.375] * 4
    audio_s = layout.positions_L3[layout.modality_L == AUDIO][:, 0]
    assert audio_s.tolist() == [(i + 0.5) / 16 for i in range(8)]
    assert layout.positions_L3[layout.modality_L == ACTION][:, 0].tolist() == [0, 0.25]
    assert layout.positions_L3.dtype == torch.float32


def test_tokens_of_another_number_of_chunks_are_those_of_the_clip(layout):
    longer = layout.of(num_chunks=5, text=True)
    assert torch.equal(longer.positions_L3[: layout.length], layout.positions_L3)
    assert torch.equal(longer.chunk_L[: layout.length], layout.chunk_L)


def test_geometry_that_does_not_divide_is_said_with_both_numbers():
    with pytest.raises(ValueError, match=r"model.chunk_frames=6 is not a multiple of .* stride 4; use 8"):
        Layout.from_specs(
            tiny_config(model={"chunk_frames": 6}, data={"clip_s": 0.75}), VIDEO_SPEC, AUDIO_SPEC
        )
    odd = CodecSpec("odd", "audio", 16000, 300, 5)
    with pytest.raises(
        ValueError, match=r"4000.0 audio samples, not a multiple of .* stride 300; change data.fps"
    ):
        Layout.from_specs(tiny_config(), VIDEO_SPEC, odd)
    with pytest.raises(ValueError, match=r"model.patch=\[3, 2\] does not divide the latent grid 4x4"):
        Layout.from_specs(tiny_config(model={"patch": [3, 2]}), VIDEO_SPEC, AUDIO_SPEC)
    with pytest.raises(ValueError, match=r"needs a size that \(8, 8\) divides, got 30x32; nearest: 32x32"):
        Layout.from_specs(tiny_config(data={"size": [30, 32]}), VIDEO_SPEC, AUDIO_SPEC)


def test_several_sound_latents_make_one_token_and_come_apart_again():
    cfg = tiny_config(model={"audio_patch": 2})
    whole, layout = tiny_layout(tiny_config()), tiny_layout(cfg)
    assert layout.audio_tokens == whole.audio_tokens // 2
    assert layout.audio_values == 2 * whole.audio_values
    latents = torch.randn(2, layout.num_chunks * layout.audio_steps, layout.audio_channels)
    packed = layout.pack_audio(latents)
    assert packed.shape == (2, layout.num_chunks, layout.audio_tokens, layout.audio_values)
    assert torch.equal(layout.unpack_audio(packed), latents)
    assert torch.equal(packed[0, 0, 0], latents[0, :2].flatten())
    at = layout.positions_L3[layout.modality_L == AUDIO][0, 0]
    assert float(at) == pytest.approx(layout.chunk_s / layout.audio_tokens / 2)


def test_a_patch_of_sound_that_does_not_divide_the_chunk_is_refused():
    with pytest.raises(ValueError, match="audio_patch=3 does not divide the 4 audio latents"):
        tiny_layout(tiny_config(model={"audio_patch": 3}))
