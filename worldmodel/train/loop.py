"""The training loop. It knows neither Ray nor storage: batches come from an iterator, commits go to a
callable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from worldmodel.batch import LatentBatch
from worldmodel.config import RunConfig
from worldmodel.draw import draw, never_together
from worldmodel.flops import step_flops
from worldmodel.flow import MIN_DIVISOR, homogeneous_levels
from worldmodel.gpus import peak_flops
from worldmodel.layout import LEARNED, Layout
from worldmodel.randomness import SampleRandom
from worldmodel.reasons import FORGOTTEN
from worldmodel.self_flow import self_flow_losses
from worldmodel.train.engine import Engine
from worldmodel.train.metrics import Signals, loss_sums, step_row
from worldmodel.train.optim import ema_decay, learning_rate

EVALUATED_T = (0.1, 0.3, 0.5, 0.7, 0.9)
SEEN_BEFORE_RATE = 64  # clips seen before a quarantine rate says something


class TrainingDiverged(RuntimeError):
    """A loss was not finite; nothing after the last commit is kept."""


@dataclass(frozen=True)
class Outcome:
    """How the loop ended, and the next step to train."""

    status: Literal["finished", "stopped", "quarantine"]
    step: int
    reason: str = ""


@dataclass(frozen=True)
class Hooks:
    """What the loop calls: `consumed` after each trained micro-batch, `commit(step)` to store weights and
    ledger."""

    commit: Callable[[int], None]
    consumed: Callable[[LatentBatch], None] = lambda batch: None
    on_row: Callable[[dict[str, float]], None] = lambda row: None
    should_stop: Callable[[], bool] = lambda: False
    evaluation: Callable[[], list[LatentBatch]] | None = None


def train(
    engine: Engine,
    stream: Iterator[list[LatentBatch]],
    cfg: RunConfig,
    layout: Layout,
    *,
    start_step: int,
    hooks: Hooks,
    enough_clips: int = SEEN_BEFORE_RATE,
) -> Outcome:
    """Trains until `cfg.train.steps`. Each item of `stream` is this rank's micro-batches of one step, the
    same number on every rank. TrainingDiverged when a loss is not finite."""
    flops_of = cache(lambda layout, clips: step_flops(cfg, layout, clips).total)
    previous, previous_counts, previous_row = Signals(), torch.zeros(2), {}
    committed = (
        start_step or -1
    )  # what is already stored is not stored twice: its folder would be overwritten
    clips_seen = clips_bad = commit_s = 0.0
    for step in range(start_step, cfg.train.steps):
        began = time.perf_counter()
        batches = next(stream)
        wait_s = time.perf_counter() - began
        draws = [
            draw(
                b.to(engine.device), _own(layout, b), cfg.objective, SampleRandom(cfg.seed, b.epoch, _ids(b))
            )
            for b in batches
        ]
        previous.stop = float(hooks.should_stop())
        if engine.leads:
            previous.clips = sum(float((b.sample_ids_B >= 0).sum()) for b in batches)
            previous.quarantined = float(sum(why != FORGOTTEN for b in batches for why in b.reasons.values()))
            previous.count(draws)
        total = Signals.from_tensor(engine.all_reduce(previous.to_tensor(engine.device)))
        if previous_row:
            _report(previous_row, total, previous_counts, cfg, engine, hooks)
        if total.stop:
            if step != committed:
                hooks.commit(step)
            return Outcome("stopped", step)
        clips_seen, clips_bad = clips_seen + total.clips, clips_bad + total.quarantined
        if clips_seen >= enough_clips and clips_bad > cfg.data.max_quarantine_rate * clips_seen:
            if step != committed:
                hooks.commit(step)
            reason = (
                f"{clips_bad:.0f} of {clips_seen:.0f} clips could not be used, more than "
                f"data.max_quarantine_rate={cfg.data.max_quarantine_rate}"
            )
            return Outcome("quarantine", step, reason)

        tokens = torch.stack([one.valid_BL.sum() for one in draws]).sum()
        signals = Signals(wait_s=wait_s)
        rate = learning_rate(step, cfg.train.steps, cfg.optim)
        sums: list[Tensor] = []
        for one in draws:
            losses = self_flow_losses(engine.student, engine.teacher, one, cfg.objective, cfg.model.depth)
            divisors = total.divisors(is_still=one.is_still)
            engine.backward(losses.objective(divisors, cfg.objective))
            sums.append(loss_sums(losses, one, divisors, cfg.objective))
        norm = engine.step(rate)
        engine.update_ema(ema_decay(step, cfg.optim.ema_target))
        # Only now, when all of the step is under way, wait for what it found.
        total_sums, squares = torch.stack(sums).sum(0).cpu(), engine.gradient_squares.tolist()
        signals.grad_video, signals.grad_audio, signals.grad_shared = squares
        num_tokens, norm = float(tokens), float(norm)
        signals.not_finite = float(not (math.isfinite(norm) and bool(total_sums[0].isfinite())))
        if engine.leads:
            signals.add_sums(total_sums)
            signals.tokens = num_tokens
            signals.flops = sum(flops_of(one.layout, len(one.valid_BL)) for one in draws)
            for batch in batches:
                hooks.consumed(batch)
        signals.step_s = time.perf_counter() - began
        previous, previous_counts = signals, total.counts()
        previous_row = {"step": step, "grad_norm": norm, "learning_rate": rate}
        if commit_s:  # that training waited before this step
            previous_row["commit_s"], commit_s = commit_s, 0.0
        done = step + 1
        commit_now = done % cfg.train.checkpoint_every == 0 or done == cfg.train.steps
        if (
            commit_now
        ):  # weights that are not finite must not be committed, so the flag cannot wait for the next step
            total = Signals.from_tensor(engine.all_reduce(signals.to_tensor(engine.device)))
            _report(previous_row, total, previous_counts, cfg, engine, hooks)
            previous, previous_row = Signals(), {}
        if hooks.evaluation and (done % cfg.train.evaluate_every == 0 or done == cfg.train.steps):
            hooks.on_row({"step": done, **evaluate(engine, hooks.evaluation(), cfg, layout)})
        if commit_now:
            began = time.perf_counter()
            hooks.commit(done)
            committed, commit_s = done, time.perf_counter() - began
    return Outcome("finished", cfg.train.steps)


@torch.no_grad()
def evaluate(engine: Engine, batches: list[LatentBatch], cfg: RunConfig, layout: Layout) -> dict[str, float]:
    """Held-out velocity error of the EMA weights at homogeneous t, and with a clean half as history. The
    training loss mixes noise levels, so it is not comparable between objectives; this is. What was never
    trained beside the other modality is evaluated without it, and what was not trained at all is not. Every
    rank brings equally many batches."""
    cases = [(f"eval_{{}}_t{t:.1f}", t, False) for t in EVALUATED_T]
    cases.append(("eval_{}_history", 0.5, True))
    sums = torch.zeros(len(cases), 2, 2, dtype=torch.float64)
    quiet = cfg.objective.model_copy(update={"rep": "none", "loss_min_t": MIN_DIVISOR})
    engine.publish_average()
    for batch, hidden in product(batches, never_together(cfg.objective)):
        rng, own = SampleRandom(cfg.seed, -1, _ids(batch)), _own(layout, batch)
        for i, (_, t, after_history) in enumerate(cases):
            context_chunks = own.num_chunks // 2 if after_history else 0
            levels = homogeneous_levels(own, batch.num_clips, t, context_chunks=context_chunks)
            one = draw(batch.to(engine.device), own, quiet, rng, levels=levels, hidden=hidden)
            losses = self_flow_losses(engine.teacher, None, one, quiet, cfg.model.depth)
            if after_history and not context_chunks:
                continue  # a clip of one chunk has no history; the forward ran, for it is collective
            sums[i, 0] += losses.flow.cpu()
            sums[i, 1] += one.counts().cpu()
    sums = engine.all_reduce(sums.to(engine.device)).cpu()
    means = sums[:, 0] / sums[:, 1].clamp_min(1)
    row = {
        name.format(m): float(means[i, j])
        for i, (name, _, _) in enumerate(cases)
        for j, m in enumerate(LEARNED)
        if sums[i, 1, j]
    }
    for j, m in enumerate(LEARNED):
        if sums[0, 1, j]:
            row[f"eval_{m}"] = float(means[: len(EVALUATED_T), j].mean())
    return row


def _peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of this kind of device on its data sheet, where it is known."""
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device), precision)


def _own(layout: Layout, batch: LatentBatch) -> Layout:
    return layout.of_latents(batch.video.latents)


def _ids(batch: LatentBatch) -> tuple[int, ...]:
    return tuple(batch.sample_ids_B.tolist())


def _report(
    row: dict[str, float], total: Signals, counts: Tensor, cfg: RunConfig, engine: Engine, hooks: Hooks
) -> None:
    """Hands out the row of a finished step. TrainingDiverged when its loss was not finite."""
    step = int(row["step"])
    means = step_row(
        step,
        total,
        counts,
        world_size=engine.world_size,
        peak=_peak(engine.device, cfg.train.precision),
    )
    hooks.on_row({**means, **row})
    if total.not_finite:
        sums = {"picture": total.flow_video, "sound": total.flow_audio}
        what = " and ".join(f"the loss of {m}" for m, loss in sums.items() if not math.isfinite(loss))
        raise TrainingDiverged(
            f"step {step}: {what or 'the gradient'} is not finite; lower optim.lr (now {cfg.optim.lr}) or "
            "optim.clip_norm"
        )
