"""The eleven traps of Self-Flow that no loss curve shows (arXiv 2603.06507): a test for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.worldmodel.synthetic import (
    PLAIN_ROWS,
    make_batch,
    many_levels,
    open_gates,
    stream_of,
    tiny_config,
    tiny_layout,
)
from worldmodel.batch import LatentBatch
from worldmodel.config import RunConfig, SelfFlowConfig
from worldmodel.draw import Draw, draw
from worldmodel.export import save_model
from worldmodel.flow import (
    add_noise,
    homogeneous_levels,
    predicted_velocity,
    velocity_target,
)
from worldmodel.layout import AUDIO, TEXT, VIDEO
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses
from worldmodel.train.checkpoint import CheckpointReader, write_checkpoint
from worldmodel.train.engine import PlainEngine
from worldmodel.train.loop import EVALUATED_T, Hooks, evaluate, train
from worldmodel.train.optim import ema_decay

# B clips, L tokens, K noise levels of a row, N chunks, V video and T audio tokens, C channels, D width.

KS_LIMIT = 1.95  # sqrt(n) * distance stays below it with probability 0.999


def ks_from_uniform(values: Tensor) -> float:
    """sqrt(n) * the greatest distance between the empirical and the uniform distribution."""
    n = len(values)
    ranks = torch.arange(n) / n
    ordered = values.sort().values
    return float(torch.maximum((ordered - ranks).abs(), (ordered - ranks - 1 / n).abs()).max()) * n**0.5


class Recorder:
    """A network that answers with given features and remembers what it was shown."""

    def __init__(self, layout, width: int = 8, **fixed: Tensor) -> None:
        self.layout, self.width, self.fixed = layout, width, fixed

    def __call__(self, tokens, level_BK, level_of_BL, **options: Any) -> dict[str, Tensor]:
        self.tokens, self.level_BK, self.level_of_BL, self.options = tokens, level_BK, level_of_BL, options
        shape = (len(level_BK), self.layout.length, self.width)
        zeros = {k: torch.zeros_like(getattr(tokens, f)) for k, f in TOKEN_FIELDS.items()}
        ones = torch.ones(shape)
        found = {**zeros, "features": ones, "projected": ones, **self.fixed}
        return {**found, "features": [found["features"]]}


TOKEN_FIELDS = {"video": "video_BNVC", "audio": "audio_BNTC"}


def drawn(layout, batch, cfg: SelfFlowConfig, *, seed: int = 0) -> Draw:
    return draw(batch, layout, cfg, SampleRandom(seed, 0, tuple(batch.sample_ids_B.tolist())))


def noise_shown(recorder: Recorder, batch: Draw, modality: str) -> Tensor:
    """Solves x_t = x0 + t (x1 - x0) for x1 where t says something."""
    data = batch.video_BNVC if modality == "video" else batch.audio_BNTC
    t = batch.of(recorder.level_BK.gather(1, recorder.level_of_BL), modality)[..., None]
    x_t = getattr(recorder.tokens, TOKEN_FIELDS[modality])
    return torch.where(t > 0.2, data + (x_t - data) / t.clamp_min(0.2), torch.nan)


# 1 ---------------------------------------------------------------------------------------------------


def test_trap_1_t_zero_is_data_and_velocity_points_to_noise():
    data, noise, t = torch.randn(3, 5), torch.randn(3, 5), torch.rand(3, 1)
    assert torch.equal(add_noise(data, noise, torch.zeros(())), data)
    assert torch.allclose(add_noise(data, noise, torch.ones(())), noise)
    assert torch.equal(velocity_target(data, noise, t, "v"), noise - data)
    x_t = add_noise(data, noise, t)
    assert torch.allclose(x_t - t * velocity_target(data, noise, t, "v"), data, atol=1e-6)


def test_trap_1_the_right_guess_of_the_data_is_the_right_velocity_at_every_t():
    data, noise = torch.randn(101, 5), torch.randn(101, 5)
    t = torch.linspace(0, 1, 101)[:, None]
    guess = predicted_velocity(data, add_noise(data, noise, t), t, "x")
    assert torch.equal(guess, velocity_target(data, noise, t, "x"))
    assert torch.allclose(guess[5:], (noise - data)[5:], atol=1e-4)  # below the clamp it shrinks to 0 instead


def test_trap_1_the_teacher_sees_the_cleaner_level(layout, batch):
    teacher, student = Recorder(layout), Recorder(layout)
    cfg = SelfFlowConfig(noise=PLAIN_ROWS)
    self_flow_losses(student, teacher, drawn(layout, batch, cfg), cfg, 3)
    pairs = rearrange(student.level_BK[:, :-2], "b (slot pair) -> b slot pair", pair=2)
    seen = rearrange(teacher.level_BK[:, :-2], "b (slot pair) -> b slot pair", pair=2)
    assert torch.equal(seen, pairs.amin(-1, keepdim=True).expand_as(seen))
    assert (pairs[..., 0] != pairs[..., 1]).all()
    assert (noise_energy(teacher) < noise_energy(student)).all()


def noise_energy(recorder: Recorder) -> Tensor:
    t_BL = recorder.level_BK.gather(1, recorder.level_of_BL)
    return t_BL.mean(dim=1)


# 2 ---------------------------------------------------------------------------------------------------


def test_trap_2_the_level_of_every_token_keeps_the_marginal_p_of_t(layout):
    levels = many_levels(layout, mask_ratio_video=0.2, mask_ratio_audio=0.2)
    t_BL = levels.per_token(levels.student_BK)
    for kind in (VIDEO, AUDIO):
        for chunk in (0, 1):
            token = int(((layout.modality_L == kind) & (layout.chunk_L == chunk)).nonzero()[1])
            assert ks_from_uniform(t_BL[:, token]) < KS_LIMIT
            assert levels.masked_BL[:, token].float().mean() == pytest.approx(0.2, abs=0.03)


def test_trap_2_t_and_s_are_not_sorted_so_the_masked_tokens_are_cleaner_in_half_of_the_rows(layout):
    levels = many_levels(layout)
    t_BN, s_BN = levels.student_BK[:, 0], levels.student_BK[:, 1]
    assert (s_BN < t_BN).float().mean() == pytest.approx(0.5, abs=0.04)
    assert abs(float(torch.corrcoef(torch.stack([t_BN, s_BN]))[0, 1])) < 0.06


def test_trap_2_without_dual_there_is_one_level(layout):
    levels = many_levels(layout, dual=False)
    assert torch.equal(levels.student_BK, levels.cleaner_BK)


# 3 ---------------------------------------------------------------------------------------------------


def test_trap_3_alignment_is_over_all_tokens_under_loss_not_the_masked_ones(layout, batch):
    cfg = SelfFlowConfig(noise=PLAIN_ROWS, mask_ratio_audio=0.5)
    one = drawn(layout, batch, cfg)
    # Features agree exactly where the token is masked and oppose each other elsewhere.
    target = torch.ones(batch.num_clips, layout.length, 8)
    projected = torch.where(one.levels.masked_BL[..., None], target, -target)
    teacher, student = Recorder(layout, features=target), Recorder(layout, projected=projected)
    losses = self_flow_losses(student, teacher, one, cfg, 3)
    counts, masked = one.counts(), one.masked_counts()
    assert (masked > 0).all()
    assert (masked < counts).all()
    assert torch.allclose(losses.align.double(), 2 * (counts - masked))


def test_trap_3_alignment_leaves_out_what_the_loss_leaves_out(layout):
    cfg = SelfFlowConfig(noise=PLAIN_ROWS)
    batch = make_batch(layout)
    batch.video.loss_mask_BT[1] = False  # real, but not to be learned
    batch.audio.valid_BT[2] = batch.audio.loss_mask_BT[2] = False
    one = drawn(layout, batch, cfg)
    losses = self_flow_losses(
        Recorder(layout, projected=-torch.ones(4, layout.length, 8)), Recorder(layout), one, cfg, 3
    )
    video, audio = 2 * layout.video_tokens, 2 * layout.audio_steps
    assert one.counts().tolist() == [3 * video, 3 * audio]
    assert losses.align.tolist() == pytest.approx([2 * 3 * video, 2 * 3 * audio])
    assert one.valid_BL[1].all()  # still seen


# 4 ---------------------------------------------------------------------------------------------------


def test_trap_4_the_cosine_is_over_channels(layout, batch):
    cfg = SelfFlowConfig(noise=PLAIN_ROWS)
    one = drawn(layout, batch, cfg)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, layout.length, 8, generator=generator)
    scale_of_token = torch.rand(4, layout.length, 1, generator=generator) + 0.1
    # Over channels the two are parallel in every token; over tokens they are not.
    losses = self_flow_losses(
        Recorder(layout, projected=target * scale_of_token), Recorder(layout, features=target), one, cfg, 3
    )
    assert losses.align.tolist() == pytest.approx([0, 0], abs=1e-3)
    assert torch.nn.functional.cosine_similarity(target * scale_of_token, target, dim=1).min() < 0.97


# 5 ---------------------------------------------------------------------------------------------------


def test_trap_5_student_and_teacher_get_the_same_noise(layout, batch):
    cfg = SelfFlowConfig(noise=PLAIN_ROWS)
    teacher, student, one = Recorder(layout), Recorder(layout), drawn(layout, batch, cfg)
    self_flow_losses(student, teacher, one, cfg, 3)
    for modality in ("video", "audio"):
        ours, theirs = noise_shown(student, one, modality), noise_shown(teacher, one, modality)
        both = ~(ours.isnan() | theirs.isnan())
        assert both.float().mean() > 0.2
        assert torch.allclose(ours[both], theirs[both], atol=1e-4)


def test_trap_5_student_and_teacher_drop_the_same_text(layout):
    cfg = SelfFlowConfig(text_drop=0.5)
    batch = make_batch(layout, clips=16)
    teacher, student = Recorder(layout), Recorder(layout)
    self_flow_losses(student, teacher, drawn(layout, batch, cfg), cfg, 3)
    assert torch.equal(student.tokens.text_BN, teacher.tokens.text_BN)
    assert torch.equal(student.tokens.valid_BL, teacher.tokens.valid_BL)
    dropped_B = (student.tokens.text_BN == 0).all(dim=1)
    assert 0 < dropped_B.sum() < 16
    is_text = layout.modality_L == TEXT
    assert torch.equal(student.tokens.valid_BL[:, is_text].any(dim=1), ~dropped_B)


def test_trap_5_the_teacher_stops_at_its_layer_without_gradient(cfg, layout, batch):
    engine = PlainEngine(cfg, layout)
    one = drawn(layout, batch, cfg.objective)
    teacher = Recorder(layout, width=32)
    losses = self_flow_losses(engine.student, teacher, one, cfg.objective, 3)
    assert (teacher.options["features"], teacher.options["stop_after"]) == ((2,), 2)
    losses = self_flow_losses(engine.student, engine.teacher, one, cfg.objective, 3)
    losses.align.sum().backward()
    assert all(p.grad is None for p in engine.teacher.parameters())
    reached = {
        n for n, p in engine.student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert {
        n for n in reached if ".blocks.1." in n or ".blocks.2." in n
    } == set()  # tapped after block 1 of 3
    assert any(n.startswith("head.") for n in reached)


# 6 ---------------------------------------------------------------------------------------------------


def test_trap_6_all_latents_of_a_patch_share_a_level(layout, batch):
    cfg = SelfFlowConfig(noise=PLAIN_ROWS, mask_ratio_video=0.5)
    one = drawn(layout, batch, cfg)
    # Zeros as data and ones as noise make x_t the level itself.
    one = replace(
        one, video_BNVC=torch.zeros_like(one.video_BNVC), video_noise=torch.ones_like(one.video_noise)
    )
    tokens, _, _ = one.tokens_at(one.levels.student_BK)
    t_BTHWC = layout.unpack_video(tokens.video_BNVC)
    patches = rearrange(t_BTHWC, "b t (r p) (c q) d -> b t r c (p q d)", p=2, q=2)
    assert torch.equal(patches.amin(-1), patches.amax(-1))
    kinds = [patches[b, n, ..., 0].unique().numel() for b in range(4) for n in range(2)]
    assert set(kinds) == {1, 2}  # t and s, token by token


# 7 ---------------------------------------------------------------------------------------------------


def test_trap_7_the_average_moves_every_step_and_equals_the_formula():
    cfg = tiny_config(train={"steps": 4})
    layout = tiny_layout(cfg)
    engine = PlainEngine(cfg, layout)
    name = "transformer.blocks.0.attention.qkv.weight"
    expected, seen = engine.ema[name].clone(), []

    students: list[Tensor] = []

    def check(_: LatentBatch) -> None:
        seen.append(engine.ema[name].clone())
        students.append(engine.master[name].detach().clone())

    hooks = Hooks(commit=lambda step: None, consumed=check)
    open_gates(engine.student)
    with torch.no_grad():
        for n, p in engine.student.named_parameters():
            engine.master[n].copy_(p)
    stream = ([make_batch(layout, number=n)] for n in range(4))
    train(engine, stream, cfg, layout, start_step=0, hooks=hooks)
    for step, (average, student) in enumerate(zip(seen, students, strict=True)):
        decay = ema_decay(step, cfg.optim.ema_target)
        following = decay * expected + (1 - decay) * student
        assert torch.allclose(average, following, atol=1e-6)
        assert not torch.equal(average, expected)
        expected = following
    assert torch.equal(dict(engine.teacher.named_parameters())[name.removeprefix("transformer.")], seen[-1])


# 8 ---------------------------------------------------------------------------------------------------


def test_trap_8_the_head_is_trained_but_neither_averaged_nor_exported(tmp_path):
    cfg = tiny_config(train={"steps": 2})
    layout = tiny_layout(cfg)
    engine = PlainEngine(cfg, layout)
    before = {n: p.detach().clone() for n, p in engine.master.items() if n.startswith("head.")}
    train(engine, stream_of(layout), cfg, layout, start_step=0, hooks=Hooks(commit=lambda step: None))
    shards = engine.shards()
    assert len(before) == 4
    for name, old in before.items():
        assert not torch.equal(engine.master[name], old)
        assert shards[name].parts["exp_avg_sq"].abs().sum() > 0
        assert "ema" not in shards[name].parts
    write_checkpoint(tmp_path, engine, 2, {})
    weights = CheckpointReader(tmp_path).ema_weights()
    assert not [n for n in weights if "head" in n.split(".")]
    assert weights.keys() == engine.teacher.state_dict().keys()
    save_model(tmp_path / "export", weights, layout, cfg, {})
    saved = (tmp_path / "export" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert b"head." not in saved[: int.from_bytes(saved[:8], "little") + 8]


# 9 ---------------------------------------------------------------------------------------------------


def test_trap_9_one_level_and_a_constant_vector_of_levels_give_the_same_output(model, layout, batch):
    cfg = SelfFlowConfig()
    one = draw(batch, layout, cfg, SampleRandom(0, 0, (0, 1, 2, 3)), homogeneous_levels(layout, 4, 0.37))
    scalar = one.levels
    mask = torch.rand(4, layout.length) < 0.5
    is_media = (layout.modality_L == VIDEO) | (layout.modality_L == AUDIO)
    tokens, _, _ = one.tokens_at(scalar.student_BK)
    vector_of_BL = scalar.level_of_BL + (mask & is_media).long()
    assert not torch.equal(vector_of_BL, scalar.level_of_BL)
    ours = model(tokens, scalar.student_BK, scalar.level_of_BL)
    theirs = model(tokens, scalar.student_BK, vector_of_BL)
    for modality in ("video", "audio"):
        assert torch.equal(ours[modality], theirs[modality])
    other = model(tokens, scalar.student_BK * 0.5, scalar.level_of_BL)
    assert not torch.allclose(ours["video"], other["video"], atol=1e-2)  # the level does matter


# 10 --------------------------------------------------------------------------------------------------


def test_trap_10_rows_of_metrics_show_cosine_spread_counts_gap_and_mask_share():
    noise = {"history_rows": 0, "independent_rows": 1, "tied": 0, "independent": 1}
    cfg = tiny_config(train={"steps": 20}, objective={"noise": noise})
    layout = tiny_layout(cfg)
    rows: list[dict[str, float]] = []
    hooks = Hooks(commit=lambda step: None, on_row=rows.append)
    train(PlainEngine(cfg, layout), stream_of(layout), cfg, layout, start_step=0, hooks=hooks)
    assert [row["step"] for row in rows] == list(range(20))
    for modality, ratio in (("video", 0.1), ("audio", 0.5)):
        assert all(-1 <= row[f"cosine_{modality}"] <= 1 for row in rows)
        assert all(row[f"teacher_std_{modality}"] > 0 for row in rows)
        assert all(
            row[f"align_{modality}"] == pytest.approx(1 - row[f"cosine_{modality}"], abs=1e-5) for row in rows
        )
        tokens = torch.tensor([row[f"tokens_{modality}"] for row in rows])
        share = torch.tensor([row[f"mask_share_{modality}"] for row in rows])
        assert float((share * tokens).sum() / tokens.sum()) == pytest.approx(ratio, abs=0.04)
        gap = torch.tensor([row[f"level_gap_{modality}"] for row in rows]).mean()
        assert float(gap) == pytest.approx(1 / 6, abs=0.05)  # E[t - min(t, s)] of two uniform draws


# 11 --------------------------------------------------------------------------------------------------


def test_trap_11_evaluation_is_at_one_level_and_at_a_clean_history(cfg, layout):
    shown: list[tuple[Tensor, Tensor]] = []

    class Watched(PlainEngine):
        """Remembers the levels that the average was evaluated at."""

        def __init__(self, cfg: RunConfig, layout) -> None:
            super().__init__(cfg, layout)
            self.teacher.register_forward_pre_hook(lambda _, given: shown.append(given[1:3]))

    row = evaluate(Watched(cfg, layout), [make_batch(layout)], cfg, layout)
    media_L = (layout.modality_L == VIDEO) | (layout.modality_L == AUDIO)
    seen = [level_BK.gather(1, level_of_BL)[:, media_L] for level_BK, level_of_BL in shown]
    for t, t_BL in zip(EVALUATED_T, seen, strict=False):
        assert torch.equal(t_BL, torch.full_like(t_BL, t))
    history = layout.chunk_L[media_L] < layout.num_chunks // 2
    assert (seen[-1][:, history] == 0).all()
    assert (seen[-1][:, ~history] == 0.5).all()
    assert len(seen) == len(EVALUATED_T) + 1
    assert {"eval_video_t0.5", "eval_audio_t0.5", "eval_video", "eval_video_history"} <= row.keys()


def test_trap_11_evaluation_neither_draws_levels_nor_drops_text(cfg, layout):
    everything_dropped = cfg.model_copy(
        update={"objective": cfg.objective.model_copy(update={"text_drop": 1.0, "noise": PLAIN_ROWS})}
    )
    engine = PlainEngine(cfg, layout)
    open_gates(engine.teacher)
    batches = [make_batch(layout)]
    assert evaluate(engine, batches, cfg, layout) == evaluate(engine, batches, everything_dropped, layout)


def test_plain_flow_matching_is_one_switch(cfg, layout, batch):
    plain = SelfFlowConfig(dual=False, rep="none", noise=PLAIN_ROWS)
    student = Recorder(layout)
    losses = self_flow_losses(student, None, drawn(layout, batch, plain), plain, 3)
    assert losses.align.tolist() == [0, 0]
    assert student.options["features"] == ()
    assert (losses.flow > 0).all()
