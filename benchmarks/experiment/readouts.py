"""What a trained arm is asked: errors on held-out clips by noise level, probes, and its rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avtok.load import load_codec
from benchmarks.experiment.frechet import Space, frechet_distance
from benchmarks.experiment.probes import FROM, NOISE_LEVELS, Factors, factors_of, features_at, probe
from worldmodel.checks.of_model import check_rollouts, clips_to_continue, continue_clips, history_error
from worldmodel.config import RunConfig
from worldmodel.draw import draw
from worldmodel.flow import homogeneous_levels
from worldmodel.layout import LEARNED
from worldmodel.model.transformer import WorldTransformer
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses
from worldmodel.worlds.catalog import make_episode, world_settings
from worldmodel.worlds.clips import HELD_OUT_SEED, WorldClips

BINS = tuple((i + 0.5) / 10 for i in range(10))
AXES = {"video": 32, "audio": 16}  # of the space of Fréchet distances
PROBED = {"fitted": 256, "held out": 128}  # clips


@dataclass(frozen=True)
class Questions:
    """What every arm is asked about, made once. None for clips without a world: nothing is known of them."""

    held_out: WorldClips
    fitted: WorldClips
    continued: WorldClips
    space: dict[str, Space]
    world: str | None = None
    known: tuple[Factors, Factors] | None = None  # of `fitted` and of `held_out`


def questions_of_world(
    world: str, cfg: RunConfig, clips: WorldClips, held_out: WorldClips, episodes: int
) -> Questions:
    """clips: those that are trained on, for what is fitted; held_out and the continued ones never are."""
    fitted = _first(clips, PROBED["fitted"])
    video, audio = load_codec(cfg.codec.video), load_codec(cfg.codec.audio)
    seeds = range(2 * HELD_OUT_SEED, 2 * HELD_OUT_SEED + episodes)
    known = tuple(
        factors_of([_truth(world, int(s), cfg) for s in part.seeds_E], cfg) for part in (fitted, held_out)
    )
    return Questions(
        held_out,
        fitted,
        clips_to_continue(cfg, video, audio, world=world, seeds=seeds),
        space_of(fitted, cfg),
        world,
        (known[0], known[1]),
    )


def questions_of_clips(cfg: RunConfig, clips: WorldClips, held_out: WorldClips) -> Questions:
    """Of clips that nothing is known of: losses and Fréchet distances. Clips must be as long as rollouts."""
    fitted = _first(clips, PROBED["fitted"])
    return Questions(held_out, fitted, held_out, space_of(fitted, cfg))


def answers(model: WorldTransformer, cfg: RunConfig, questions: Questions) -> dict[str, Any]:
    """Numbers for JSON: loss, error_by_t, of_the_past (see history_error), probes and rollouts."""
    errors = held_out_errors(model, cfg, questions.held_out)
    found: dict[str, Any] = {"loss": weighted_loss(errors, cfg), "error_by_t": errors}
    batches = questions.held_out.batches(cfg, num_clips=len(questions.held_out))
    device = next(model.parameters()).device
    found["of_the_past"] = history_error(model, [batch.to(device) for batch in batches], cfg)
    if questions.known is not None:
        found["probes"] = _probes(model, cfg, questions)
    found["rollouts"] = _rollouts(model, cfg, questions)
    return found


@torch.no_grad()
def held_out_errors(model: WorldTransformer, cfg: RunConfig, clips: WorldClips) -> dict[str, list[float]]:
    """Squared error of the predicted velocity, every token at one t, at the middle of ten bins."""
    quiet = cfg.objective.model_copy(update={"rep": "none", "loss_min_t": 0.05})
    device = next(model.parameters()).device
    sums = torch.zeros(len(BINS), 2, 2, dtype=torch.float64)
    for batch in clips.batches(cfg, num_clips=len(clips)):
        rng = SampleRandom(cfg.seed, -1, tuple(batch.sample_ids_B.tolist()))
        for i, t in enumerate(BINS):
            levels = homogeneous_levels(model.layout, batch.num_clips, t)
            one = draw(batch.to(device), model.layout, quiet, rng, levels)
            losses = self_flow_losses(model, None, one, quiet, cfg.model.depth)
            sums[i] += torch.stack([losses.flow.double().cpu(), one.counts().cpu()])
    means = (sums[:, 0] / sums[:, 1]).T.tolist()
    return dict(zip(LEARNED, means, strict=True))


def weighted_loss(errors: dict[str, list[float]], cfg: RunConfig, times: tuple[float, ...] = BINS) -> float:
    """What training minimises, at homogeneous t: the mean over times, weighed as objective.loss_min_t says,
    summed over modalities."""
    least = cfg.objective.loss_min_t if cfg.objective.prediction == "x" else 0.0
    weights = [(t / max(t, least)) ** 2 for t in times]
    return float(sum(np.mean(np.multiply(weights, values)) for values in errors.values()))


def space_of(clips: WorldClips, cfg: RunConfig) -> dict[str, Space]:
    whole = {"video": clips.video_ETHWC, "audio": clips.audio_ETC}
    return {m: Space.of(_chunks(torch.from_numpy(whole[m]), cfg.num_chunks), AXES[m]) for m in whole}


def _probes(model: WorldTransformer, cfg: RunConfig, questions: Questions) -> dict[str, Any]:
    """{factor: {t: [score of the noisy latents, of layer 1, ...]}}."""
    assert questions.known is not None
    fitted, truth = questions.known
    found: dict[str, Any] = {factor: {} for factor in FROM}
    for t in NOISE_LEVELS:
        train = features_at(model, questions.fitted, cfg, t, noise=-2)
        held_out = features_at(model, questions.held_out, cfg, t, noise=-1)
        for factor, modality in FROM.items():
            found[factor][str(t)] = [
                probe(
                    train[n][modality], getattr(fitted, factor), held_out[n][modality], getattr(truth, factor)
                )
                for n in sorted(train)
            ]
    return found


def _rollouts(model: WorldTransformer, cfg: RunConfig, questions: Questions) -> dict[str, Any]:
    clips = questions.continued
    latents = continue_clips(model, cfg, clips, device=next(model.parameters()).device)
    truth = {"video": torch.from_numpy(clips.video_ETHWC), "audio": torch.from_numpy(clips.audio_ETC)}
    chunks = round((cfg.rollout.prefix_s + cfg.rollout.seconds) / cfg.chunk_s)
    given = round(cfg.rollout.prefix_s / cfg.chunk_s)
    found: dict[str, Any] = {}
    for m, made in (("video", latents.video), ("audio", latents.audio)):
        ours, theirs = (questions.space[m](_chunks(x, chunks, given)) for x in (made, truth[m]))
        found[f"frechet_{m}"] = frechet_distance(ours, theirs)
    if questions.world is None:
        return found
    video, audio = load_codec(cfg.codec.video), load_codec(cfg.codec.audio)
    checks = check_rollouts(latents, cfg, video, audio, world=questions.world, seeds=clips.seeds_E.tolist())
    of = checks["checks"]
    return found | {
        "position_error": _bounded(of["position_error"]),
        "position_error_median": of["position_error"].get("value"),
        "position_error_over_frozen": checks["position_error_025s_over_frozen"],
        "onset_f1": of["onset_f1"].get("value"),
        "onset_f1_gain": of["onset_f1"].get("own_minus_another"),
        "contact_sound_lag_ms": of["contact_sound_lag"].get("value"),
    }


def _bounded(check: dict[str, Any]) -> float | None:
    """The mean over episodes, each at most what a frozen frame is wrong by. Lost bodies would outweigh all
    others else, and half of them would make the median jump."""
    if "per_episode" not in check:
        return None
    frozen = check["baselines"]["frozen_frame"]
    return float(np.nanmean(np.minimum(check["per_episode"], frozen)))


def _chunks(latents: Tensor, chunks: int, first: int = 0) -> np.ndarray:
    """[E, T, ...] -> [E * chunks from `first` on, values of one chunk]."""
    by_chunk = latents.float().reshape(len(latents), chunks, -1)[:, first:]
    return by_chunk.flatten(0, 1).numpy()


def _first(clips: WorldClips, count: int) -> WorldClips:
    return WorldClips(*(getattr(clips, name)[:count] for name in WorldClips.__annotations__))


def _truth(world: str, seed: int, cfg: RunConfig):
    return make_episode(world_settings(world, "in"), seed=seed, duration_s=cfg.data.clip_s).truth
