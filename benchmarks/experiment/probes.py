"""Linear probes: what of the scene can be read off a layer's tokens by one matrix.

Position and velocity of the bodies are read from a chunk's picture tokens, and so is what sounded: a material
or nothing. Of several bodies that says which, where no two are alike; of a single one whether, and as what.
The largest body's material is read from sound tokens, also where it is silent. What each modality does not
show comes by attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldmodel.config import RunConfig
from worldmodel.draw import draw
from worldmodel.flow import homogeneous_levels
from worldmodel.model.student import tokens_of
from worldmodel.model.transformer import WorldTransformer
from worldmodel.randomness import SampleRandom
from worldmodel.worlds.clips import WorldClips
from worldmodel.worlds.sound import MATERIALS
from worldmodel.worlds.truth import Truth

# E clips, N chunks, R = E * N samples, F features, Y targets.

NOISE_LEVELS = (0.1, 0.3, 0.5)
STRENGTHS = (1e1, 1e2, 1e3, 1e4, 1e5)  # of the ridge; the best on a fifth of the samples is taken
FROM = {"position": "video", "velocity": "video", "material": "audio", "sounded": "video"}
SILENT = len(MATERIALS)


@dataclass(frozen=True)
class Factors:
    """Of every chunk: mean position and velocity of its bodies [R, 2], the largest one's material and the
    material that sounded loudest, SILENT for none [R]."""

    position: np.ndarray
    velocity: np.ndarray
    material: np.ndarray
    sounded: np.ndarray

    def rows(self, which: np.ndarray) -> Factors:
        return Factors(*(getattr(self, name)[which] for name in FROM))


def factors_of(truths: Sequence[Truth], cfg: RunConfig) -> Factors:
    """Of the chunks of each clip in turn."""
    frames, chunks = cfg.model.chunk_frames, cfg.num_chunks
    names = list(MATERIALS)
    position, velocity, material, sounded = [], [], [], []
    for truth in truths:
        for name, states_TK2 in (("position", truth.positions_TK2), ("velocity", truth.velocities_TK2)):
            per_chunk = states_TK2[: chunks * frames].mean(1).reshape(chunks, frames, 2).mean(1)
            (position if name == "position" else velocity).append(per_chunk)
        material.append(np.full(chunks, names.index(truth.materials[int(truth.radius_K.argmax())])))
        loudest = np.full(chunks, SILENT)
        for contact in sorted(truth.contacts, key=lambda one: one.impulse):
            chunk = int(contact.time_s / cfg.chunk_s)
            if chunk < chunks:
                loudest[chunk] = names.index(truth.materials[contact.body])
        sounded.append(loudest)
    return Factors(*(np.concatenate(parts) for parts in (position, velocity, material, sounded)))


@torch.no_grad()
def features_at(
    model: WorldTransformer, clips: WorldClips, cfg: RunConfig, t: float, *, noise: int
) -> dict[int, dict[str, np.ndarray]]:
    """Hidden states after each layer (0: the noisy latents themselves), [R, F] of each modality, with every
    token at t. noise: a number of the draw; clips of one row share theirs, so what a probe is fitted on and
    what it is asked about need two, or it is asked about noise that it has learned."""
    layers = range(1, model.cfg.depth + 1)
    found: dict[int, dict[str, list[np.ndarray]]] = {n: {"video": [], "audio": []} for n in (0, *layers)}
    device = next(model.parameters()).device
    for batch in clips.batches(cfg, num_clips=len(clips)):
        levels = homogeneous_levels(model.layout, batch.num_clips, t)
        rng = SampleRandom(cfg.seed, noise, tuple(batch.sample_ids_B.tolist()))
        one = draw(batch.to(device), model.layout, cfg.objective, rng, levels)
        tokens, x_t, _ = one.tokens_at(one.levels.student_BK)
        out = model(
            tokens, one.levels.student_BK, one.levels.level_of_BL, layout=model.layout, features=tuple(layers)
        )
        for m in ("video", "audio"):
            found[0][m].append(_flat(x_t[m]))
            for n, hidden_BLD in zip(layers, out["features"], strict=True):
                found[n][m].append(_flat(tokens_of(hidden_BLD, m, model.layout)))
    return {n: {m: np.concatenate(parts) for m, parts in by.items()} for n, by in found.items()}


def probe(train: np.ndarray, known: np.ndarray, held_out: np.ndarray, truth: np.ndarray) -> float:
    """Of a ridge from features [R, F]: the share of variance that it explains of numbers [R, 2], or the
    accuracy of classes [R], balanced over those that occur; on samples that it never saw."""
    is_class = known.ndim == 1
    targets = np.eye(SILENT + 1)[known] if is_class else known
    mean_F, scale_F = train.mean(0), train.std(0) + 1e-6
    x_RF, y_mean = (train - mean_F) / scale_F, targets.mean(0)
    fitted = int(0.8 * len(x_RF))
    best = max(
        STRENGTHS,
        key=lambda s: _score(
            x_RF[fitted:] @ _ridge(x_RF[:fitted], targets[:fitted] - y_mean, s) + y_mean, known[fitted:]
        ),
    )
    return _score((held_out - mean_F) / scale_F @ _ridge(x_RF, targets - y_mean, best) + y_mean, truth)


def _score(guess_RY: np.ndarray, truth: np.ndarray) -> float:
    if truth.ndim == 1:
        chosen = guess_RY.argmax(1)
        return float(np.mean([(chosen[truth == c] == c).mean() for c in np.unique(truth)]))
    residual = np.square(guess_RY - truth).sum(0) / np.square(truth - truth.mean(0)).sum(0)
    return float(1 - residual.mean())


def _ridge(x_RF: np.ndarray, y_RY: np.ndarray, strength: float) -> np.ndarray:
    """[F, Y], by the smaller of the two systems."""
    samples, values = x_RF.shape
    if samples < values:
        return x_RF.T @ np.linalg.solve(x_RF @ x_RF.T + strength * np.eye(samples), y_RY)
    return np.linalg.solve(x_RF.T @ x_RF + strength * np.eye(values), x_RF.T @ y_RY)


def _flat(x_BNVD: Tensor) -> np.ndarray:
    return x_BNVD.float().flatten(0, 1).flatten(1).cpu().numpy()
