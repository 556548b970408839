"""Rollouts against the reference: one forward over the whole history with the band-and-sink mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.worldmodel.synthetic import make_batch, open_model, tiny_config, tiny_layout
from worldmodel.batch import LatentBatch
from worldmodel.config import RolloutConfig
from worldmodel.draw import token_mask
from worldmodel.flow import add_noise
from worldmodel.layout import Layout
from worldmodel.model.transformer import Tokens, WorldTransformer
from worldmodel.sampler import CachedChunk, Chunk, Sampler
from worldmodel.session import Latents, RolloutSessions, prefix_as_chunks

# B sessions, L tokens, N chunks, K noise levels, J cached tokens.

CONTEXT_NOISE = 0.2
ROLLOUT = RolloutConfig(steps=3, context_noise=CONTEXT_NOISE)


def build(window: int, sink: int, num_chunks: int, **model) -> tuple[WorldTransformer, Layout]:
    cfg = tiny_config(model={"window_chunks": window, "sink_chunks": sink, **model})
    layout = tiny_layout(cfg).of(num_chunks=num_chunks, text=True)
    return open_model(cfg, layout), layout


def sampler_of(model: WorldTransformer, text_BN: torch.Tensor, seeds: list[int], **options) -> Sampler:
    settings = {"prediction": "x", "steps": 3, "context_noise": CONTEXT_NOISE, **options}
    return Sampler(model, text_BN=text_BN, seeds=seeds, **settings)


def no_actions(sampler: Sampler) -> tuple[torch.Tensor, torch.Tensor]:
    num, layout = len(sampler.seeds), sampler.layout
    return torch.zeros(num, layout.chunk_frames * layout.action_dim), torch.zeros(num, dtype=torch.bool)


def whole_history(model: WorldTransformer, layout: Layout, batch: LatentBatch, sampler: Sampler) -> list:
    """Keys and values of one forward over all chunks, with the noise that the sampler gave each of them."""
    chunks = prefix_as_chunks(batch, layout.of(num_chunks=layout.num_chunks, text=False))
    t = torch.tensor(CONTEXT_NOISE)

    def noisy(name: str, field: str) -> torch.Tensor:
        parts = [getattr(c, field) for c in chunks]
        return torch.stack(
            [add_noise(x, sampler._noise(f"context.{name}", k, 0, x), t) for k, x in enumerate(parts)], 1
        )

    level_BK = torch.full((batch.num_clips, layout.num_levels), CONTEXT_NOISE)
    level_BK[:, -1] = 0
    tokens = Tokens(
        noisy("video", "video_BVC"),
        noisy("audio", "audio_BTC"),
        batch.text_BN,
        torch.stack([c.actions_BA for c in chunks], 1),
        torch.stack([c.actions_valid_B for c in chunks], 1),
        token_mask(layout, batch.video.valid_BT, batch.audio.valid_BT, batch.text_BN),
    )
    level_of_BL = layout.level_slot_L.expand(batch.num_clips, -1)
    return model(tokens, level_BK, level_of_BL, layout=layout, keep_cache=True)["cache"]


def assert_cached_as_whole(cache: list[CachedChunk], whole: list, layout: Layout, chunks: list[int]) -> None:
    for cached, chunk in zip(cache, chunks, strict=True):
        here = layout.chunk_L == chunk
        for (k, v), (whole_k, whole_v) in zip(cached.keys_values, whole, strict=True):
            assert torch.allclose(k, whole_k[:, :, here], atol=2e-5)
            assert torch.allclose(v, whole_v[:, :, here], atol=2e-5)


CONDITIONS = {"text_patch": 2, "speech_bytes": 6, "action_modulation": True}


@pytest.mark.parametrize("options", [{}, {"audio_patch": 2}, CONDITIONS])
@pytest.mark.parametrize("has_audio", [True, False])
def test_cached_keys_equal_one_forward_over_the_whole_history(has_audio, options):
    # sink + window: the longest trained history
    model, layout = build(window=3, sink=1, num_chunks=4, **options)
    batch = make_batch(layout, has_audio=has_audio)
    sampler = sampler_of(model, batch.text_BN, [1, 2, 3, 4])
    for chunk in prefix_as_chunks(batch, layout.of(num_chunks=4, text=False)):
        sampler.append(chunk)
    whole = whole_history(model, layout, batch, sampler)
    assert_cached_as_whole(sampler.cache.sinks + sampler.cache.window, whole, layout, [0, 1, 2, 3])
    is_text = layout.chunk_L == -1
    assert sampler.cache.text is not None
    for (k, v), (whole_k, whole_v) in zip(sampler.cache.text.keys_values, whole, strict=True):
        assert torch.allclose(k, whole_k[:, :, is_text], atol=2e-5)
        assert torch.allclose(v, whole_v[:, :, is_text], atol=2e-5)


def test_without_a_sink_the_cache_equals_the_whole_history_far_beyond_the_window():
    model, layout = build(window=3, sink=0, num_chunks=12)
    batch = make_batch(layout)
    batch.text_BN.zero_()  # text has no time of its own, so only without it are all distances relative
    sampler = sampler_of(model, batch.text_BN, [1, 2, 3, 4])
    for chunk in prefix_as_chunks(batch, layout.of(num_chunks=12, text=False)):
        sampler.append(chunk)
    whole = whole_history(model, layout, batch, sampler)
    assert_cached_as_whole(sampler.cache.window, whole, layout, [9, 10, 11])


@pytest.mark.parametrize(("window", "sink"), [(1, 1), (3, 0), (3, 1), (2, 2)])
def test_no_distance_ever_leaves_the_trained_range(window, sink):
    model, layout = build(window=window, sink=sink, num_chunks=window + sink)
    batch = make_batch(layout, clips=1)
    sampler = sampler_of(model, batch.text_BN, [1])
    chunks = prefix_as_chunks(batch, layout.of(num_chunks=layout.num_chunks, text=False))
    for index in range(30):
        _, angles_JP, valid_BJ, slot = sampler._past()
        assert slot == min(index, window + sink - 1)
        assert len(angles_JP) == valid_BJ.shape[1] == layout.text_tokens + slot * layout.tokens_per_chunk
        sampler.append(chunks[index % len(chunks)])


@pytest.mark.parametrize("far", [51, 5000])
def test_a_late_chunk_equals_an_early_one_given_equal_cache_contents(far):
    model, layout = build(window=3, sink=1, num_chunks=4)
    batch = make_batch(layout)
    early, late = (sampler_of(model, batch.text_BN, [1, 2, 3, 4]) for _ in range(2))
    chunks = prefix_as_chunks(batch, layout.of(num_chunks=4, text=False))
    for index in range(9):
        early.append(chunks[index % 4])
    late.cache.sinks, late.cache.window = list(early.cache.sinks), list(early.cache.window)
    late.cache.before = early.cache.before
    early.cache.num_chunks, late.cache.num_chunks = 50, far
    noise = {"video": torch.randn_like(chunks[0].video_BVC), "audio": torch.randn_like(chunks[0].audio_BTC)}
    outputs = [s._forward(chunks[0], noise, (torch.tensor(0.7),) * 2)[0] for s in (early, late)]
    assert torch.equal(outputs[0]["video"], outputs[1]["video"])
    assert torch.equal(outputs[0]["audio"], outputs[1]["audio"])
    first, second = early.generate(*no_actions(early)), late.generate(*no_actions(late))
    assert not torch.allclose(first.video_BVC, second.video_BVC)  # fresh noise for each chunk


def test_the_history_decides_what_comes_next():
    model, layout = build(window=3, sink=1, num_chunks=4)
    outputs = []
    for number in (0, 1):
        batch = make_batch(layout, number=number)
        sessions = RolloutSessions(model, ROLLOUT, "x")
        sessions.reset(batch, prefix_chunks=3, seeds=[1, 2, 3, 4])
        outputs.append(sessions.step().video_BVC)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-2)


def rolled(model, batch: LatentBatch, seeds: list[int], steps: int = 4) -> RolloutSessions:
    sessions = RolloutSessions(model, ROLLOUT, "x")
    sessions.reset(batch, prefix_chunks=2, seeds=seeds)
    for _ in range(steps):
        sessions.step()
    return sessions


def clip(batch: LatentBatch, index: int) -> LatentBatch:
    def one(part):
        return type(part)(
            part.latents[index : index + 1],
            part.valid_BT[index : index + 1],
            part.loss_mask_BT[index : index + 1],
            part.time_s_T2,
        )

    here = slice(index, index + 1)
    return LatentBatch(
        batch.epoch,
        batch.batch_id,
        batch.sample_ids_B[here],
        one(batch.video),
        one(batch.audio),
        batch.text_BN[here],
        batch.actions_BFA[here],
        batch.actions_valid_BF[here],
    )


def test_seeds_decide_and_batch_slots_do_not():
    model, layout = build(window=3, sink=1, num_chunks=4)
    batch = make_batch(layout)
    together = rolled(model, batch, [11, 12, 13, 14]).latents()
    alone = rolled(model, clip(batch, 2), [13]).latents()
    assert torch.allclose(together.video[2:3], alone.video, atol=1e-5)
    assert torch.allclose(together.audio[2:3], alone.audio, atol=1e-5)
    other = rolled(model, clip(batch, 2), [99]).latents()
    prefix = 2 * layout.video_steps
    assert torch.equal(other.video[:, :prefix], alone.video[:, :prefix])
    assert not torch.allclose(other.video[:, prefix:], alone.video[:, prefix:], atol=1e-2)


def test_replay_gives_the_same_bits_flushes_and_actions_included():
    model, layout = build(window=3, sink=1, num_chunks=4)
    sessions = rolled(model, make_batch(layout), [1, 2, 3, 4], steps=2)
    sessions.flush()
    sessions.step(torch.randn(4, layout.chunk_frames, layout.action_dim))
    sessions.step()
    first = sessions.latents()
    sessions.replay()
    again = sessions.latents()
    assert torch.equal(first.video, again.video)
    assert torch.equal(first.audio, again.audio)
    assert first.video.shape[1] == 6 * layout.video_steps


def test_actions_lead_the_rollout():
    model, layout = build(window=3, sink=1, num_chunks=4)
    outputs = []
    for sign in (-1.0, 1.0):
        sessions = rolled(model, make_batch(layout), [1, 2, 3, 4], steps=0)
        outputs.append(sessions.step(torch.full((4, layout.chunk_frames, layout.action_dim), sign)).video_BVC)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)


def test_flush_keeps_the_sinks_and_the_last_chunk():
    model, layout = build(window=3, sink=1, num_chunks=4)
    sessions = rolled(model, make_batch(layout), [1, 2, 3, 4])
    cache = sessions.sampler.cache
    before = cache.visible()
    assert len(before) == 3
    sessions.flush()
    after = cache.visible()
    assert [id(c) for c in after] == [id(before[0]), id(before[-1])]
    assert torch.isfinite(sessions.step().video_BVC).all()


def test_more_euler_steps_change_the_chunk_and_keep_its_shape():
    model, layout = build(window=3, sink=1, num_chunks=4)
    batch = make_batch(layout)
    few, many = (sampler_of(model, batch.text_BN, [1, 2, 3, 4], steps=n) for n in (1, 6))
    first, second = few.generate(*no_actions(few)), many.generate(*no_actions(many))
    assert first.video_BVC.shape == second.video_BVC.shape == (4, layout.video_tokens, 24)
    assert not torch.allclose(first.video_BVC, second.video_BVC, atol=1e-2)


def test_one_euler_step_from_noise_lands_on_the_models_guess_of_the_data():
    model, layout = build(window=3, sink=1, num_chunks=4)
    batch = make_batch(layout)
    sampler = sampler_of(model, batch.text_BN, [1, 2, 3, 4], steps=1)
    actions, valid = no_actions(sampler)
    noise = {
        "video": sampler._noise("video", 0, 0, torch.empty(4, layout.video_tokens, 24)),
        "audio": sampler._noise("audio", 0, 0, torch.empty(4, layout.audio_steps, 5)),
    }
    ones = torch.ones(4, dtype=torch.bool)
    start = Chunk(noise["video"], noise["audio"], ones, ones, actions, valid)
    out, _ = sampler._forward(start, noise, (torch.tensor(1.0),) * 2)
    chunk = sampler.generate(actions, valid)
    assert torch.allclose(chunk.video_BVC, out["video"][:, 0], atol=1e-5)
    assert torch.allclose(chunk.audio_BTC, out["audio"][:, 0], atol=1e-5)


def test_a_prefix_without_sound_is_continued_with_finite_picture_and_sound():
    model, layout = build(window=3, sink=1, num_chunks=4)
    silent = rolled(model, make_batch(layout, has_audio=False), [1, 2, 3, 4]).latents()
    assert torch.isfinite(silent.video).all()
    assert torch.isfinite(silent.audio).all()
    heard = rolled(model, make_batch(layout), [1, 2, 3, 4]).latents()
    assert not torch.allclose(silent.video[:, 2:], heard.video[:, 2:], atol=1e-2)


@pytest.mark.parametrize(("made", "absent"), [("video", "audio"), ("audio", "video")])
def test_what_a_model_does_not_make_is_neither_seen_nor_made(made: str, absent: str):
    model, layout = build(window=3, sink=1, num_chunks=4)
    batch, seeds = make_batch(layout), [1, 2, 3, 4]

    def continued(prefix: LatentBatch, *modalities: str) -> Latents:
        sessions = RolloutSessions(model, ROLLOUT, "x", modalities)
        sessions.reset(prefix, prefix_chunks=2, seeds=seeds)
        for _ in range(3):
            sessions.step()
        return sessions.latents()

    alone = continued(batch, made)
    part = getattr(batch, absent)
    other = replace(batch, **{absent: replace(part, latents=torch.randn_like(part.latents))})
    again = continued(other, made)
    assert torch.equal(getattr(again, made), getattr(alone, made))
    steps = {"video": layout.video_steps, "audio": layout.audio_steps}
    assert not getattr(alone, absent)[:, 2 * steps[absent] :].any()
    assert getattr(alone, made)[:, 2 * steps[made] :].any()
    beside = continued(batch, "video", "audio")
    assert not torch.allclose(getattr(beside, made), getattr(alone, made), atol=1e-2)


def test_a_prefix_that_does_not_fit_is_said():
    model, layout = build(window=3, sink=1, num_chunks=4)
    sessions = RolloutSessions(model, ROLLOUT, "x")
    for prefix_chunks in (-1, 5):
        with pytest.raises(
            ValueError, match=rf"prefix of {prefix_chunks} chunks asked, clips have 4; use 0 to 4"
        ):
            sessions.reset(make_batch(layout), prefix_chunks=prefix_chunks, seeds=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="4 sessions need as many seeds, got 2"):
        sessions.reset(make_batch(layout), prefix_chunks=2, seeds=[1, 2])


def test_sound_that_follows_the_picture_is_made_from_a_cleaner_one():
    model, layout = build(window=3, sink=1, num_chunks=4)
    batch = make_batch(layout)
    first = prefix_as_chunks(batch, layout.of(num_chunks=4, text=False))[0]
    seen: dict[int, list[tuple[float, float]]] = {}
    for lag in (0, 2):
        sampler = sampler_of(model, batch.text_BN, [1, 2, 3, 4], sound_lag=lag)
        sampler.append(first)
        levels = seen.setdefault(lag, [])
        forward = sampler._forward

        def spy(chunk, noisy, t, forward=forward, levels=levels, **options):
            levels.append((float(t[0]), float(t[1])))
            return forward(chunk, noisy, t, **options)

        sampler._forward = spy
        sampler.generate(*no_actions(sampler))
    thirds = [1.0, 2 / 3, 1 / 3]
    context = [(CONTEXT_NOISE, CONTEXT_NOISE)]
    assert np.allclose(seen[0], [(t, t) for t in thirds] + context)
    lagging = [(1.0, 1.0), (2 / 3, 1.0), (1 / 3, 1.0), (0.0, 2 / 3), (0.0, 1 / 3)]
    assert np.allclose(seen[2], lagging + context)
