"""Captions, transcripts and actions: apart from each other, dropped apart, and guided apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.worldmodel.synthetic import make_batch, open_model, tiny_config, tiny_layout
from worldmodel.batch import LatentBatch
from worldmodel.config import RolloutConfig, RunConfig, SelfFlowConfig
from worldmodel.draw import draw
from worldmodel.flow import homogeneous_levels
from worldmodel.layout import SPEECH_BYTES_PER_S, TEXT
from worldmodel.model.text import ByteEncoder, encode_bytes, encode_texts
from worldmodel.model.transformer import WorldTransformer
from worldmodel.randomness import SampleRandom
from worldmodel.session import RolloutSessions

CAPTION, SPEECH = 8, 4  # bytes
MODEL = {
    "text_tokens": CAPTION,
    "speech_bytes": SPEECH,
    "text_patch": 2,
    "action_modulation": True,
    "window_chunks": 8,
}


def config(**parts) -> RunConfig:
    return tiny_config(model=MODEL, data={"clip_s": 1.0}, **parts)


@pytest.fixture(scope="module")
def model() -> WorldTransformer:
    cfg = config()
    return open_model(cfg, tiny_layout(cfg))


def without(batch: LatentBatch, condition: str) -> LatentBatch:
    text_BN = batch.text_BN.clone()
    if condition == "caption":
        text_BN[:, :CAPTION] = 0
    if condition == "speech":
        text_BN[:, CAPTION:] = 0
    known_BF = batch.actions_valid_BF & (condition != "actions")
    return replace(batch, text_BN=text_BN, actions_valid_BF=known_BF)


def roll(model: WorldTransformer, batch: LatentBatch, **guidance: float) -> torch.Tensor:
    """Latents of two chunks that follow one, all in one row a clip."""
    sessions = RolloutSessions(model, RolloutConfig(prefix_s=0.25, steps=3, **guidance), "x")
    sessions.reset(batch, prefix_chunks=1, seeds=[5, 6])
    for _ in range(2):
        sessions.step()
    latents = sessions.latents()
    return torch.cat([latents.video.flatten(1), latents.audio.flatten(1)], dim=1)


CONDITIONS = {"caption": "guidance_text", "speech": "guidance_speech", "actions": "guidance_actions"}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_guidance_of_zero_is_a_rollout_without_the_condition_and_more_leads_away_from_it(model, condition):
    batch = make_batch(model.layout, clips=2)
    plain, bare = roll(model, batch), roll(model, without(batch, condition))
    assert (plain - bare).abs().max() > 1e-3  # it matters at all
    assert torch.allclose(roll(model, batch, **{CONDITIONS[condition]: 0.0}), bare, atol=1e-4)
    more = roll(model, batch, **{CONDITIONS[condition]: 1.5})
    assert (more - bare).norm() > (plain - bare).norm()


def test_two_conditions_are_guided_side_by_side(model):
    batch = make_batch(model.layout, clips=2)
    alone = {name: roll(model, batch, **{name: 3.0}) for name in CONDITIONS.values()}
    both = roll(model, batch, guidance_text=3.0, guidance_actions=3.0)
    assert all((both - one).abs().max() > 1e-3 for one in alone.values())
    # A weight of 1 costs no row and changes nothing, not even the last bit.
    assert torch.equal(roll(model, batch, guidance_text=1.0), roll(model, batch))


def test_the_caption_guides_the_first_chunks_and_other_conditions_all(model):
    batch = make_batch(model.layout, clips=2)
    others = roll(model, batch, guidance_actions=3.0)
    all_guided = roll(model, batch, guidance_text=3.0, guidance_actions=3.0)

    def until(chunks: int) -> torch.Tensor:
        return roll(model, batch, guidance_text=3.0, guidance_text_chunks=chunks, guidance_actions=3.0)

    assert torch.allclose(until(1), others, atol=1e-4)  # the prefix is one chunk
    assert torch.equal(until(3), all_guided)
    two = until(2)
    first = 2 * model.layout.video_tokens * model.layout.video_values  # pictures of prefix and first chunk
    assert torch.allclose(two[:, :first], all_guided[:, :first], atol=1e-4)
    assert (two - all_guided).abs().max() > 1e-3
    assert (two - others).abs().max() > 1e-3
    ignored = roll(model, batch, guidance_text=0.0, guidance_text_chunks=1)
    assert torch.allclose(ignored, roll(model, without(batch, "caption")), atol=1e-4)  # not only at first


def test_conditions_are_dropped_apart_and_never_in_evaluation():
    cfg = config()
    layout = tiny_layout(cfg)
    batch = make_batch(layout, clips=64)
    shares = SelfFlowConfig(text_drop=0.5, speech_drop=0.25, action_drop=0.75)
    one = draw(batch, layout, shares, SampleRandom(0, 0, tuple(range(64))))
    has_caption_B = (one.text_BN[:, :CAPTION] > 0).any(1)
    has_speech_B = (one.text_BN[:, CAPTION:] > 0).any(1)
    has_actions_B = one.actions_valid_BN.any(1)
    kept = [float(x.float().mean()) for x in (has_caption_B, has_speech_B, has_actions_B)]
    assert kept == pytest.approx([0.5, 0.75, 0.25], abs=0.15)
    assert (
        len({tuple(row) for row in torch.stack([has_caption_B, has_speech_B, has_actions_B], 1).tolist()})
        == 8
    )
    assert not one.actions_BNA[~has_actions_B].any()
    text_valid_BN = one.valid_BL[:, layout.modality_L == TEXT]
    assert torch.equal(text_valid_BN[:, : CAPTION // 2].any(1), has_caption_B)
    levels = homogeneous_levels(layout, 64, 0.5)
    quiet = draw(batch, layout, shares, SampleRandom(0, 0, tuple(range(64))), levels)
    assert torch.equal(quiet.text_BN, batch.text_BN)
    assert quiet.actions_valid_BN.all()


def test_the_last_action_of_a_chunk_leads_into_the_next_one(model):
    """Off by one, an agent would see its action's effect a frame late."""
    batch = make_batch(model.layout, clips=1)
    frames = model.layout.chunk_frames
    changed = batch.actions_BFA.clone()
    changed[:, 2 * frames - 1] += 1  # of the last frame of chunk 1, into the first of chunk 2
    outputs = [
        predicted(model, replace(batch, actions_BFA=actions)) for actions in (batch.actions_BFA, changed)
    ]
    moved_N = (outputs[0] - outputs[1]).abs().amax(dim=(0, 2, 3))
    assert (moved_N > 1e-5).tolist() == [False, False, True, True]


def test_actions_modulate_their_chunk_and_unknown_ones_do_not(model):
    batch = make_batch(model.layout, clips=1)
    assert model.action_level is not None
    unknown = replace(batch, actions_valid_BF=torch.zeros_like(batch.actions_valid_BF))
    before, weight = predicted(model, batch), model.action_level.weight.clone()
    silent = predicted(model, unknown)
    with torch.no_grad():
        model.action_level.weight.zero_()
    assert not torch.allclose(predicted(model, batch), before, atol=1e-3)
    assert torch.equal(predicted(model, unknown), silent)
    with torch.no_grad():
        model.action_level.weight.copy_(weight)


def test_the_levels_of_a_chunk_are_led_by_its_own_actions_and_by_known_ones_only():
    cfg = config()
    led = open_model(cfg, tiny_layout(cfg))
    assert led.action_level is not None
    torch.nn.init.ones_(led.action_level.bias)
    levels = homogeneous_levels(led.layout, 1, 0.7)
    one = draw(
        make_batch(led.layout, clips=1), led.layout, SelfFlowConfig(), SampleRandom(0, -1, (0,)), levels
    )
    tokens, _, _ = one.tokens_at(levels.student_BK)
    known_BN = torch.tensor([[False, True, False, False]])
    plain_BKD = torch.zeros(1, led.layout.num_levels, cfg.model.width)
    led_BKD = led._led(plain_BKD, replace(tokens, actions_valid_BN=known_BN))
    assert led_BKD.any(-1)[0].nonzero().flatten().tolist() == [4, 5, 6, 7]  # t and s of its picture and sound


def predicted(model: WorldTransformer, batch: LatentBatch) -> torch.Tensor:
    levels = homogeneous_levels(model.layout, batch.num_clips, 0.7)
    one = draw(batch, model.layout, SelfFlowConfig(), SampleRandom(0, -1, (0,)), levels)
    tokens, _, _ = one.tokens_at(levels.student_BK)
    with torch.no_grad():
        return model(tokens, levels.student_BK, levels.level_of_BL, layout=model.layout)["video"]


def test_a_transcript_lies_along_the_clip_and_a_caption_has_no_time():
    layout = tiny_layout(config())
    seconds_N = layout.positions_L3[: layout.text_tokens, 0]
    assert not seconds_N[: CAPTION // 2].any()
    middles = [1 / SPEECH_BYTES_PER_S, 3 / SPEECH_BYTES_PER_S]
    assert seconds_N[CAPTION // 2 :].tolist() == pytest.approx(middles)


def test_a_token_of_bytes_knows_the_words_that_it_cuts_and_nothing_of_padding():
    torch.manual_seed(0)
    encoder = ByteEncoder(16, 4)
    red, rod = (encoder(encode_bytes(text, 24)[None])[0] for text in ("a red ball", "a rod ball"))
    assert not torch.allclose(red[0], rod[0])  # its own bytes
    assert not torch.allclose(red[1], rod[1])  # of its neighbours
    assert torch.equal(red[4:], rod[4:])  # far away
    filled = encoder(encode_bytes("a red ball", 12)[None])[0]  # hardly any padding, and then the edge
    assert torch.allclose(filled, red[:3], atol=1e-6)


def test_a_transcript_stands_in_for_a_caption_only_where_it_has_no_place_of_its_own():
    def read(caption: str, transcript: str, speech_bytes: int) -> str:
        values = encode_texts(caption, transcript, caption_bytes=6, speech_bytes=speech_bytes)
        return "".join(chr(value - 1) if value else "." for value in values.tolist())

    assert read("", "hello", 0) == "hello."
    assert read("a cat", "hello", 0) == "a cat."
    assert read("a cat", "hello", 4) == "a cat.hell"
    assert read("", "hello", 4) == "......hell"


@pytest.mark.parametrize(("name", "near"), [("text_tokens", 8), ("speech_bytes", 4)])
def test_bytes_that_do_not_fill_their_tokens_are_refused_with_what_would(name, near):
    with pytest.raises(ValueError, match=f"{name}={near - 1} is not a multiple of text_patch=2; use {near}"):
        tiny_config(model=MODEL | {name: near - 1})
