"""Stills, films and sound: each with noise and weight of its own, alone or together, alike at any batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.worldmodel.synthetic import PLAIN_ROWS, make_batch, tiny_config
from tests.worldmodel.test_objectives import config_of, networks
from worldmodel.batch import LatentBatch
from worldmodel.config import SelfFlowConfig, TimeConfig
from worldmodel.draw import Draw, draw
from worldmodel.layout import VIDEO
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import Losses, self_flow_losses
from worldmodel.train.engine import PlainEngine
from worldmodel.train.loop import Hooks, evaluate, train
from worldmodel.train.metrics import Signals


def without(batch: LatentBatch, modality: str) -> LatentBatch:
    """The same clips, in which it was never there."""
    latents = getattr(batch, modality)
    nothing = torch.zeros_like(latents.valid_BT)
    return replace(batch, **{modality: replace(latents, valid_BT=nothing, loss_mask_BT=nothing)})


def test_stills_have_levels_masks_and_a_weight_of_their_own(layout, batch):
    cfg = SelfFlowConfig(
        mask_ratio_video=0.0,
        mask_ratio_image=0.5,
        image_weight=3.0,
        text_drop=0,
        speech_drop=0,
        noise=PLAIN_ROWS.model_copy(update={"image": TimeConfig(distribution="logit_normal", shift=50.0)}),
    )
    clip, still = (
        draw(replace(batch, is_still=x), layout, cfg, SampleRandom(0, 0, (0, 1, 2, 3))) for x in (False, True)
    )
    is_video_L = layout.modality_L == VIDEO
    assert not clip.levels.masked_BL[:, is_video_L].any()
    assert still.levels.masked_BL[:, is_video_L].any()
    t_clip, t_still = (
        float(one.levels.per_token(one.levels.student_BK)[:, is_video_L].mean()) for one in (clip, still)
    )
    assert t_still > 0.9 > t_clip
    ones, zeros = torch.ones(2), torch.zeros(2)
    losses = Losses(ones, zeros, zeros, zeros, zeros, torch.zeros(2, 5, 5), is_still=True)
    assert float(losses.objective(ones, cfg)) == 3.0 + 1.0


def test_some_micro_batches_are_trained_with_one_modality_alone_on_any_rank(layout):
    cfg = SelfFlowConfig(picture_alone=0.3, sound_alone=0.2, noise=PLAIN_ROWS)
    shares = {"video": 0, "audio": 0}
    for number in range(300):
        batch = make_batch(layout, number=number, clips=1)
        one = draw(batch, layout, cfg, SampleRandom(0, 0, (number,)))
        seen = {m: bool(one.of(one.valid_BL, m).any()) for m in shares}
        assert any(seen.values())
        assert {m: bool(one.loss_mask(m).any()) for m in shares} == seen
        for m in shares:
            shares[m] += not seen[m]
    assert shares["audio"] / 300 == pytest.approx(0.3, abs=0.08)
    assert shares["video"] / 300 == pytest.approx(0.2, abs=0.08)


def test_a_step_of_many_micro_batches_weighs_kinds_as_steps_of_one_do(layout):
    cfg = config_of(
        rep="none", image_weight=0.3, video_weight=0.1, audio_weight=0.6, noise=PLAIN_ROWS.model_dump()
    )
    student, _ = networks(cfg, layout)
    draws = []
    for number, (kind, hidden) in enumerate(
        [("joint", ""), ("still", "audio"), ("still", "audio"), ("film", "audio"), ("sound", "video")]
    ):
        batch = replace(make_batch(layout, number=number), is_still=kind == "still")
        batch = without(batch, hidden) if hidden else batch
        draws.append(draw(batch, layout, cfg.objective, SampleRandom(0, 0, (0, 1, 2, 3))))

    def objective_of(step: list[Draw]) -> float:
        signals, whole = Signals(), 0.0
        signals.count(step)
        for one in step:
            losses = self_flow_losses(student, None, one, cfg.objective, cfg.model.depth)
            divisors = signals.divisors(is_still=one.is_still)
            whole += float(losses.objective(divisors, cfg.objective).detach())
        return whole

    alone = [objective_of([one]) for one in draws]
    assert objective_of(draws) == pytest.approx(sum(alone) / len(draws), rel=1e-4)
    joint = [draws[0], replace(draws[0])]
    signals = Signals()
    signals.count(joint)
    assert torch.equal(signals.divisors(is_still=False), 2 * draws[0].counts())


@pytest.mark.parametrize("hidden", ["audio", "video"])
def test_a_clip_of_one_modality_always_teaches_something(layout, hidden):
    batch = without(make_batch(layout, clips=200), hidden)
    one = draw(batch, layout, SelfFlowConfig(), SampleRandom(0, 0, tuple(range(200))))
    assert one.loss_BL.any(1).all()
    assert not one.loss_mask(hidden).any()


@pytest.mark.parametrize(
    ("alone", "hidden", "seen"), [("picture", "audio", "video"), ("sound", "video", "audio")]
)
def test_what_is_never_trained_together_is_evaluated_apart(layout, alone, hidden, seen):
    cfg = tiny_config(objective={f"{alone}_alone": 1.0})
    batch, engine = make_batch(layout), PlainEngine(cfg, layout)
    generator = torch.Generator().manual_seed(0)
    for average in engine.ema.values():  # open its gates
        average += 0.05 * torch.randn(average.shape, generator=generator)
    row = evaluate(engine, [batch], cfg, layout)
    assert f"eval_{seen}" in row
    assert not [name for name in row if hidden in name]
    assert row == evaluate(engine, [without(batch, hidden)], cfg, layout)
    both = evaluate(engine, [batch], tiny_config(), layout)
    assert both[f"eval_{seen}"] != row[f"eval_{seen}"]
    turns = tiny_config(objective={"picture_alone": 0.5, "sound_alone": 0.5})
    row |= {name: value for name, value in evaluate(engine, [batch], turns, layout).items() if hidden in name}
    assert row == evaluate(engine, [batch], turns, layout)


@pytest.mark.parametrize(("alone", "never"), [("picture", "audio"), ("sound", "video")])
def test_what_is_never_trained_is_not_trained_by_clips_that_have_nothing_else(layout, alone, never):
    cfg = tiny_config(objective={f"{alone}_alone": 1.0}, train={"steps": 2})
    other = "video" if never == "audio" else "audio"
    batch = without(make_batch(layout), other)
    one = draw(batch, layout, cfg.objective, SampleRandom(0, 0, (0, 1, 2, 3)))
    assert not one.loss_BL.any()
    rows: list[dict[str, float]] = []
    engine = PlainEngine(cfg, layout)
    hooks = Hooks(commit=lambda step: None, on_row=rows.append)
    train(engine, iter([[batch], [make_batch(layout)]]), cfg, layout, start_step=0, hooks=hooks)
    assert [f"loss_{other}" in row for row in rows] == [False, True]
    assert not any(f"loss_{never}" in row for row in rows)
    assert all(torch.isfinite(parameter).all() for parameter in engine.student.parameters())
