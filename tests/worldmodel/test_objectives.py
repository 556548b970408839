"""The rivals of Self-Flow: each switch does what its name says, in the same step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange

from avtok.load import codec_spec
from tests.worldmodel.synthetic import (
    PLAIN_ROWS,
    make_batch,
    many_levels,
    open_gates,
    tiny_config,
)
from worldmodel.batch import LatentBatch
from worldmodel.config import NoiseConfig, RunConfig, SelfFlowConfig, TimeConfig
from worldmodel.draw import Draw, draw
from worldmodel.flow import time_of_quantile
from worldmodel.layout import AUDIO, TEXT, VIDEO, Layout
from worldmodel.load_config import load_config
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import WorldTransformer
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import Losses, layers_of, self_flow_losses
from worldmodel.spread import Followed, participation_ratio, spread_of
from worldmodel.train.engine import PlainEngine, build_student
from worldmodel.train.loop import Hooks, train

# B clips, L tokens, N chunks, M modalities, V tokens of a modality in a chunk, D width, K noise levels.

DINO = {"name": "dino", "encoder": "FOLDER", "width": 6}
WAV = {"name": "wav", "encoder": "FOLDER", "width": 5, "modality": "audio"}
ARMS: dict[str, dict[str, Any]] = {
    "flow matching": {"dual": False, "rep": "none"},
    "dual levels only": {"rep": "none"},
    "self-flow": {},
    "sra": {"dual": False, "teacher_t": "offset"},
    "layersync": {"rep": "layersync", "dual": False},
    "velocity heads": {"rep": "velocity_heads", "dual": False},
    "repa": {"rep": "repa", "dual": False},
    "apart": {"attention_separation": True},
    "shuffled": {"teacher_shuffled": True},
}


def config_of(**objective: Any) -> RunConfig:
    targets = [DINO, WAV] if objective.get("rep") == "repa" else []
    return tiny_config(objective=objective, data={"targets": targets})


def with_targets(batch: LatentBatch, layout: Layout) -> LatentBatch:
    steps, audio_steps = batch.video.valid_BT.shape[1], batch.audio.valid_BT.shape[1]
    generator = torch.Generator().manual_seed(5)
    valid = torch.ones(batch.num_clips, steps, dtype=torch.bool)
    valid[0, 0] = False
    targets = {
        "dino": torch.randn(batch.num_clips, steps, *layout.video_grid, 6, generator=generator),
        "dino_valid": valid,
        "wav": torch.randn(batch.num_clips, audio_steps, 5, generator=generator),
        "wav_valid": torch.ones(batch.num_clips, audio_steps, dtype=torch.bool),
    }
    return replace(batch, targets=targets)


def networks(cfg: RunConfig, layout: Layout) -> tuple[SelfFlowStudent, WorldTransformer]:
    student = build_student(cfg, layout)
    open_gates(student)
    teacher = build_student(cfg, layout).transformer.requires_grad_(False)
    open_gates(teacher, seed=1)
    return student, teacher


def losses_of(cfg: RunConfig, layout: Layout, batch: LatentBatch) -> tuple[Losses, SelfFlowStudent, Draw]:
    student, teacher = networks(cfg, layout)
    one = draw(batch, layout, cfg.objective, SampleRandom(0, 0, tuple(batch.sample_ids_B.tolist())))
    return self_flow_losses(student, teacher, one, cfg.objective, cfg.model.depth), student, one


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs_in_the_same_step_and_reaches_every_weight_that_it_has(arm, layout):
    cfg = config_of(**ARMS[arm], noise={"first_frame": 0.5})
    losses, student, one = losses_of(cfg, layout, with_targets(make_batch(layout), layout))
    objective = losses.objective(one.counts(), cfg.objective)
    assert torch.isfinite(objective)
    objective.backward()
    without = [n for n, p in student.named_parameters() if p.grad is None]
    assert without == []
    heads = {n.split(".")[0] for n, _ in student.named_parameters()} - {"transformer"}
    named = {"ema": {"head"}, "repa": {"target_heads"}, "velocity_heads": {"velocity_heads"}}
    assert heads == named.get(cfg.objective.rep, set())
    if cfg.objective.rep in ("none",):
        assert losses.align.abs().sum() == 0
    else:
        assert losses.align.min() > 0


def test_layersync_follows_its_own_later_layer_without_teacher_head_or_gradient_to_it(layout, batch):
    cfg = config_of(rep="layersync", dual=False, align_weight=1.0)
    student, _ = networks(cfg, layout)
    one = draw(batch, layout, cfg.objective, SampleRandom(0, 0, (0, 1, 2, 3)))
    losses = self_flow_losses(student, None, one, cfg.objective, cfg.model.depth)
    losses.align.sum().backward()
    _, late = layers_of(cfg.objective, cfg.model.depth)
    reached = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(".blocks.0." in n for n in reached)
    assert not any(f".blocks.{late - 1}." in n for n in reached)


def test_repa_follows_the_encoder_of_each_modality_where_it_has_features(layout):
    cfg = config_of(rep="repa", dual=False, noise=PLAIN_ROWS.model_dump())
    batch = with_targets(make_batch(layout), layout)
    student, _ = networks(cfg, layout)
    one = draw(batch, layout, cfg.objective, SampleRandom(0, 0, (0, 1, 2, 3)))
    losses = self_flow_losses(student, None, one, cfg.objective, cfg.model.depth)
    tokens, _, _ = one.tokens_at(one.levels.student_BK)
    layer, _ = layers_of(cfg.objective, cfg.model.depth)
    out = student(tokens, one.levels.student_BK, one.levels.level_of_BL, layout=layout, features=(layer,))
    expected = []
    for name, m in (("dino", "video"), ("wav", "audio")):
        target, valid = one.targets[name].features, one.targets[name].valid
        cosine = torch.nn.functional.cosine_similarity(out["predicted_targets"][name], target, dim=-1)
        expected.append(((1 - cosine) * (one.loss_mask(m) & valid)).sum())
    torch.testing.assert_close(losses.align, torch.stack(expected))
    dino, grid = one.targets["dino"], layout.video_grid
    steps = rearrange(dino.features, "b n (t r c) d -> b (n t) r c d", r=grid[0], c=grid[1])
    assert torch.equal(steps, batch.targets["dino"])
    assert not dino.valid[0, 0].any()
    assert one.loss_mask("video")[0, 0].all()


def test_targets_of_unknown_width_are_told(layout):
    cfg = tiny_config(objective={"rep": "repa"}, data={"targets": [{"name": "dino", "encoder": "FOLDER"}]})
    with pytest.raises(ValueError, match="dino: width is not set"):
        build_student(cfg, layout)
    with pytest.raises(ValueError, match=r"data\.targets is empty"):
        tiny_config(objective={"rep": "repa"})


def test_an_offset_teacher_sees_a_little_less_noise_and_one_level_a_clip(layout):
    levels = many_levels(layout, dual=False, teacher_t="offset", teacher_offset=0.2)
    gap_BK = (levels.student_BK - levels.cleaner_BK)[:, :-2]
    assert gap_BK.min() >= 0
    assert 0.15 < gap_BK.max() <= 0.2
    unclamped = levels.cleaner_BK[:, :-2] > 0
    largest = gap_BK.amax(1, keepdim=True).expand_as(gap_BK)
    assert torch.allclose(gap_BK[unclamped], largest[unclamped], atol=1e-6)


def test_a_teacher_at_the_same_levels_sees_what_the_student_sees(layout):
    levels = many_levels(layout, teacher_t="same")
    assert torch.equal(levels.student_BK, levels.cleaner_BK)


def test_a_shuffled_teacher_gives_the_features_of_another_clip(layout, batch):
    plain, shuffled = (losses_of(config_of(teacher_shuffled=x), layout, batch)[0] for x in (False, True))
    assert torch.equal(plain.flow, shuffled.flow)
    assert not torch.allclose(plain.align, shuffled.align)


def test_tokens_apart_do_not_reach_the_other_level(layout, batch):
    cfg = config_of(
        attention_separation=True, mask_ratio_video=0.5, mask_ratio_audio=0.5, noise=PLAIN_ROWS.model_dump()
    )
    student, _ = networks(cfg, layout)
    one = draw(batch, layout, cfg.objective, SampleRandom(0, 0, (0, 1, 2, 3)))
    assert one.group_BL is not None
    assert set(one.group_BL.unique().tolist()) == {0, 1, 2}
    video = one.video_BNVC.clone().requires_grad_()
    tokens, _, _ = replace(one, video_BNVC=video).tokens_at(one.levels.student_BK, apart=True)
    out = student(tokens, one.levels.student_BK, one.levels.level_of_BL, layout=layout)
    group_BNV = one.of(one.group_BL, "video")
    for own, other in ((2, 1), (1, 2)):
        (reached,) = torch.autograd.grad(
            (out["video"] * (group_BNV == own)[..., None]).sum(), video, retain_graph=True
        )
        reached_BNV = reached.abs().sum(-1) > 0
        assert reached_BNV[group_BNV == own].all()
        assert not reached_BNV[group_BNV == other].any()


# Noise levels --------------------------------------------------------------------------------------------


def test_each_modality_has_its_own_shift_and_tied_ones_are_cleaner_together(layout):
    noise = NoiseConfig(
        history_rows=0,
        independent_rows=1,
        tied=1,
        independent=0,
        video=TimeConfig(distribution="logit_normal", shift=2.95),
        audio=TimeConfig(distribution="logit_normal"),
    )
    levels = many_levels(layout, noise)
    table = rearrange(levels.student_BK[:, :-2], "b (n m pair) -> b n m pair", m=2, pair=2)
    logit = torch.logit(table.double())
    torch.testing.assert_close(
        logit[:, :, 0] - logit[:, :, 1],
        torch.full_like(logit[:, :, 0], torch.log(torch.tensor(2.95)).item()),
        atol=1e-3,
        rtol=1e-3,
    )
    assert torch.equal(table[:, :, 0, 0] < table[:, :, 0, 1], table[:, :, 1, 0] < table[:, :, 1, 1])


def test_a_plateau_is_level_beyond_its_peak():
    cfg = TimeConfig(distribution="plateau", shift=3.0)
    quantiles = (torch.arange(200_000) + 0.5) / 200_000
    t = time_of_quantile(quantiles, cfg)
    density = torch.histc(t, bins=50, min=0, max=1) / 200_000 * 50
    plain = time_of_quantile(quantiles, TimeConfig(distribution="logit_normal", shift=3.0))
    peak = int(torch.histc(plain, bins=50, min=0, max=1).argmax())
    assert (density[peak + 1 :] - density[peak + 1]).abs().max() < 0.02
    assert (density[:peak].diff() > 0).all()
    assert t.diff().min() >= 0


def test_some_draws_come_from_the_noisiest_end(layout):
    noise = PLAIN_ROWS.model_copy(update={"video": TimeConfig(noisiest=0.3)})
    table = many_levels(layout, noise).student_BK[:, :-2].unflatten(1, (-1, 2, 2))
    assert float((table[:, :, 0] > 0.95).float().mean()) == pytest.approx(0.3 + 0.7 * 0.05, abs=0.01)
    assert float((table[:, :, 1] > 0.95).float().mean()) == pytest.approx(0.05, abs=0.01)


def test_a_given_first_frame_is_nearly_clean_without_loss_and_the_same_for_both(layout):
    layout = layout.of(num_chunks=2, text=True)
    layout = replace(layout, video_steps=3)
    noise = NoiseConfig(history_rows=0, independent_rows=1, tied=0, independent=1, first_frame=0.5)
    levels = many_levels(layout, noise)
    rows, columns = layout.video_grid
    first_BL = levels.level_of_BL == layout.first_frame_slot
    assert float(first_BL.any(1).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert set(first_BL.sum(1).unique().tolist()) == {0, rows * columns}
    assert (layout.modality_L[first_BL.any(0)] == VIDEO).all()
    assert layout.positions_L3[first_BL.any(0), 0].unique().numel() == 1
    t_BL = levels.per_token(levels.student_BK)
    assert t_BL[first_BL].max() <= 0.2
    assert torch.equal(t_BL[first_BL], levels.per_token(levels.cleaner_BK)[first_BL])
    assert not (levels.loss_BL & first_BL).any()
    assert not (levels.masked_BL & first_BL).any()
    assert levels.loss_BL[:, (layout.modality_L == VIDEO) & ~first_BL.any(0)].all()


def test_conditions_are_dropped_together(layout):
    cfg = SelfFlowConfig(text_drop=0, speech_drop=0, condition_drop=0.5)
    batch = make_batch(layout, clips=200)
    one = draw(batch, layout, cfg, SampleRandom(0, 0, tuple(range(200))))
    has_text_B = (one.text_BN > 0).any(1)
    has_actions_B = one.actions_valid_BN.any(1)
    assert torch.equal(has_text_B, has_actions_B)
    assert float(has_text_B.float().mean()) == pytest.approx(0.5, abs=0.1)
    assert not one.valid_BL[~has_text_B][:, layout.modality_L == TEXT].any()


def test_the_rank_of_features_is_how_many_directions_they_fill():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(20, 3, generator=generator))[0]
    few = torch.randn(500, 3, generator=generator) @ directions.T
    assert float(participation_ratio(few)) == pytest.approx(3, abs=0.2)
    assert float(participation_ratio(torch.randn(1000, 20, generator=generator))) > 18
    assert float(participation_ratio(torch.ones(100, 20))) == 1


def test_spread_and_rank_by_level_are_those_of_the_tokens_at_it():
    generator = torch.Generator().manual_seed(0)
    features = 5 + torch.randn(4, 30, 20, generator=generator)
    level_T = torch.randint(0, 3, (120,), generator=generator)
    level_T[level_T == 2] = 3  # no token at level 2, one at level 4, some without loss
    level_T[7] = 4
    features = features + 100 * level_T.view(4, 30, 1)  # levels differ by much more than tokens at one do
    is_learned_T = torch.rand(120, generator=generator) < 0.8
    is_learned_T[7] = True
    level_TN = torch.nn.functional.one_hot(level_T, 5) * is_learned_T[:, None]
    spread = spread_of([Followed(features), Followed(3 * features)], level_TN.float())
    for level in (0, 1, 3):
        there = features.flatten(0, 1)[(level_T == level) & is_learned_T]
        std, rank, tokens = spread.by_level[level]
        assert int(tokens) == len(there)
        torch.testing.assert_close(std / tokens, 2 * there.std(dim=0).mean(), rtol=1e-5, atol=0)
        assert 15 < rank / tokens <= 20
    assert not spread.by_level[[2, 4]].any()
    torch.testing.assert_close(spread.std, 2 * features.flatten(0, 1).std(dim=0).mean(), rtol=1e-5, atol=0)
    wide = spread_of([Followed(torch.cat([features] * 10, dim=-1))], level_TN.float())  # more than tokens
    torch.testing.assert_close(wide.by_level[:, 1:], spread.by_level[:, 1:], rtol=1e-4, atol=0)
    assert not spread_of([], level_TN.float()).by_level.any()


def test_a_rank_does_not_depend_on_how_many_tokens_a_level_has():
    generator = torch.Generator().manual_seed(0)
    scale_D = torch.linspace(0.1, 2, 384)
    truth = scale_D.square().sum() ** 2 / scale_D.pow(4).sum()
    level_TN, first = torch.zeros(256, 5), 0
    for level, tokens in enumerate((24, 36, 52, 60, 84)):
        level_TN[first : first + tokens, level] = 1
        first += tokens
    ranks = []
    for _ in range(30):
        spread = spread_of([Followed(torch.randn(256, 384, generator=generator) * scale_D)], level_TN)
        ranks.append(spread.by_level[:, 1] / spread.by_level[:, 2])
    assert torch.stack(ranks).mean(0) / truth == pytest.approx(torch.ones(5), abs=0.1)
    assert float(spread.rank / truth) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("steps", "side"), [(16, 4), (8, 8), (64, 16), (6, 8)])
def test_spread_is_of_every_place_in_a_picture_and_of_the_last_clip(steps: int, side: int):
    places = torch.zeros(steps, side, side, 4)
    places[:, -1, -1] = 1  # one corner alone differs
    places[-1] = 2
    told = spread_of([Followed(places)], torch.zeros(steps * side**2, 0)).std
    assert float(told / places.flatten(0, 2).std(dim=0).mean()) == pytest.approx(1, abs=0.2)


def test_tokens_without_features_are_no_collapse():
    generator = torch.Generator().manual_seed(0)
    features, valid = torch.randn(2, 40, 8, generator=generator), torch.ones(2, 40, dtype=torch.bool)
    valid[1] = False
    level_TN = torch.ones(80, 1)
    there = spread_of([Followed(features[:1])], level_TN[:40])
    features[1] = 0
    found = spread_of([Followed(features, valid)], level_TN)
    torch.testing.assert_close((found.std, found.rank), (there.std, there.rank), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.by_level, there.by_level, rtol=1e-5, atol=0)


def test_rows_tell_spread_and_rank_by_noise_level_where_something_is_followed(layout, batch):
    for rep, is_told in (("ema", True), ("layersync", True), ("none", False)):
        cfg = tiny_config(objective={"rep": rep}, train={"steps": 1})
        rows: list[dict[str, float]] = []
        hooks = Hooks(commit=lambda step: None, on_row=rows.append)
        train(PlainEngine(cfg, layout), iter([[batch]]), cfg, layout, start_step=0, hooks=hooks)
        told = [value for name, value in rows[0].items() if name.startswith("teacher_") and "_t0" in name]
        assert bool(told) == is_told
        assert all(value > 0 for value in told)


def test_losses_by_noise_level_add_up_to_the_whole(layout, batch):
    losses, _, one = losses_of(config_of(noise=PLAIN_ROWS.model_dump()), layout, batch)
    torch.testing.assert_close(losses.by_level[:, :, 0].sum(1), losses.flow.detach())
    torch.testing.assert_close(losses.by_level[:, :, 1].sum(1), losses.cosine)
    torch.testing.assert_close(losses.by_level[:, :, 2].sum(1).double(), one.masked_counts())
    torch.testing.assert_close(losses.by_level[:, :, 3].sum(1).double(), one.level_gaps(), rtol=1e-5, atol=0)
    assert torch.equal(losses.by_level[:, :, 4].sum(1).double(), one.counts())
    assert (losses.by_level[:, :, 2:4] > 0).any(1).all()
    is_audio_L = layout.modality_L == AUDIO
    t = one.levels.per_token(one.levels.student_BK)[:, is_audio_L]
    in_second = (t >= 0.2) & (t < 0.4) & one.loss_BL[:, is_audio_L]
    assert int(losses.by_level[1, 1, 4]) == int(in_second.sum())


# As published ----------------------------------------------------------------------------------------------

PUBLISHED = sorted((Path(__file__).parents[2] / "configs" / "as_published").glob("*.yaml"))
SMALL = ["model.depth=3", "model.width=64", "model.head_dim=32", "train.device=cpu", "train.precision=fp32"]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_what_was_published_trains_and_carries_loss_where_it_says(path: Path):
    cfg = load_config(path, [*SMALL, "data.size=[32,32]", "train.steps=1", "train.micro_batches=1"])
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    batch = make_batch(layout, clips=2, has_audio=path.stem != "image")
    batch = replace(batch, is_still=path.stem == "image")
    rows: list[dict[str, float]] = []
    hooks = Hooks(commit=lambda step: None, on_row=rows.append)
    train(PlainEngine(cfg, layout), iter([[batch]]), cfg, layout, start_step=0, hooks=hooks)
    learned = {"video": {"video"}, "audio": {"audio"}, "image": {"video"}, "mixed": {"video", "audio"}}
    assert {m for m in ("video", "audio") if f"loss_{m}" in rows[0]} == learned[path.stem]
    assert cfg.objective.prediction == "v"
    published = {"align_weight": 0.8, "student_layer": 0.3, "teacher_layer": 0.7, "teacher_t": "min"}
    assert {name: getattr(cfg.objective, name) for name in published} == published
