"""Worlds `bounce_one`, `bounce` and `pusher`: balls in a box, each contact seen and heard."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from worldmodel.worlds.captions import caption_of, short_caption
from worldmodel.worlds.drawing import COLORS, Look, draw_scene
from worldmodel.worlds.physics import PUSHER_MASS, Disc, move
from worldmodel.worlds.pusher import wander
from worldmodel.worlds.settings import PUSHER_RADIUS, BounceSettings
from worldmodel.worlds.sound import MATERIALS, Strike, contact_sound
from worldmodel.worlds.truth import Contact, Episode, Truth, read_truth, write_truth

__all__ = ["BounceSettings", "Contact", "Episode", "Truth", "read_truth", "simulate", "write_truth"]

# T frames, K bodies, 2 is x (right) and y (down), N samples, H rows, W columns, C red green blue.

TRIES = 200  # draws of a starting place before the earlier bodies are moved, too
CLEARANCE = 0.005  # box widths between bodies at the start


@dataclass(frozen=True)
class Scene:
    """What a seed draws before anything moves. occluder: left, top, right, bottom in box widths."""

    discs: tuple[Disc, ...]
    materials: tuple[str, ...]
    colors: tuple[str, ...]
    occluder: tuple[float, float, float, float] | None
    pusher: Disc | None


def simulate(
    settings: BounceSettings, *, seed: int, duration_s: float, actions_T2: np.ndarray | None = None
) -> Episode:
    """Draw, move, render and sound one clip. The same arguments give the same bytes.

    actions_T2: one velocity a frame for the pusher, in box widths/s, instead of its own wandering; ValueError
    where there is no pusher, or too few of them.
    """
    num_frames, num_samples = round(duration_s * settings.fps), round(duration_s * settings.sample_rate)
    if num_frames < 1:
        raise ValueError(
            f"duration_s={duration_s} is less than one frame at {settings.fps} fps; give more seconds"
        )
    rng = np.random.default_rng(seed)
    scene = draw_start(settings, rng)
    actions_T2 = _actions(settings, rng, num_frames, actions_T2)
    motion = move(
        scene.discs,
        num_frames=num_frames,
        fps=settings.fps,
        damping=settings.damping,
        pusher=scene.pusher,
        actions_T2=actions_T2,
    )
    video_THWC, visible_TK = draw_scene(
        motion.positions_TK2,
        looks_of(settings, scene),
        size_px=settings.size_px,
        pusher_T2=motion.pusher_T2,
        pusher_radius=PUSHER_RADIUS,
        occluder=scene.occluder,
    )
    truth = Truth(
        world=settings.world,
        split=settings.split,
        seed=seed,
        fps=settings.fps,
        sample_rate=settings.sample_rate,
        duration_s=num_frames / settings.fps,
        caption=words_of(settings, scene),
        materials=scene.materials,
        colors=scene.colors,
        radius_K=np.array([disc.radius for disc in scene.discs]),
        mass_K=np.array([disc.mass for disc in scene.discs]),
        positions_TK2=motion.positions_TK2,
        velocities_TK2=motion.velocities_TK2,
        visible_TK=visible_TK,
        contacts=motion.contacts,
        occluder=scene.occluder,
        pusher_T2=motion.pusher_T2,
        actions_T2=actions_T2,
    )
    audio_N = contact_sound(
        strikes_of(motion.contacts, scene.materials),
        num_samples=num_samples,
        sample_rate=settings.sample_rate,
        gain=settings.gain,
    )
    return Episode(video_THWC, audio_N, truth)


def draw_start(settings: BounceSettings, rng: np.random.Generator) -> Scene:
    """Bodies that neither overlap nor leave the box, the pusher, and the plate in front of them."""
    low, high = settings.bodies
    count = low if low == high else int(rng.integers(low, high + 1))
    materials = [settings.materials[rng.integers(len(settings.materials))] for _ in range(count)]
    colors = (
        tuple(settings.colors[i] for i in rng.permutation(len(settings.colors))[:count])
        if settings.colors
        else tuple(MATERIALS[name].color for name in materials)
    )
    while True:
        taken: list[Disc] = []
        if settings.pusher:
            free = rng.uniform(PUSHER_RADIUS, 1.0 - PUSHER_RADIUS, size=2)
            taken.append(Disc((float(free[0]), float(free[1])), (0.0, 0.0), PUSHER_RADIUS, PUSHER_MASS))
        for material in materials:
            disc = _place(settings, material, taken, rng)
            if disc is None:
                break
            taken.append(disc)
        else:
            break
    pusher = taken.pop(0) if settings.pusher else None
    occluder = None
    if settings.occluder and rng.uniform() < settings.occluder:
        width, height = rng.uniform(0.28, 0.40), rng.uniform(0.5, 1.0)
        left, top = rng.uniform(0.1, 0.9 - width), rng.uniform(0.0, 1.0 - height)
        occluder = (float(left), float(top), float(left + width), float(top + height))
    return Scene(tuple(taken), tuple(materials), colors, occluder, pusher)


def _place(
    settings: BounceSettings, material: str, taken: list[Disc], rng: np.random.Generator
) -> Disc | None:
    radius = rng.uniform(*settings.radius)
    for _ in range(TRIES):
        x, y = rng.uniform(radius, 1.0 - radius, size=2)
        if all(math.dist((x, y), other.position) > radius + other.radius + CLEARANCE for other in taken):
            speed = rng.uniform(*settings.speed)
            # A body that moves along an axis hits the same spot for ever, so directions keep off the axes.
            angle = math.radians(
                90.0 * rng.integers(4)
                + rng.uniform(settings.off_axis_degrees, 90.0 - settings.off_axis_degrees)
            )
            velocity = (speed * math.cos(angle), speed * math.sin(angle))
            return Disc((float(x), float(y)), velocity, radius, settings.mass(material, radius))
    return None


def _actions(
    settings: BounceSettings, rng: np.random.Generator, num_frames: int, given_T2: np.ndarray | None
) -> np.ndarray | None:
    if not settings.pusher:
        if given_T2 is not None:
            raise ValueError(f"world {settings.world} has no pusher; actions are for world 'pusher'")
        return None
    if given_T2 is None:
        return wander(rng, num_frames=num_frames, fps=settings.fps, limit=settings.action_limit)
    return within_limit(settings, given_T2, num_frames)


def within_limit(settings: BounceSettings, actions_T2: np.ndarray, num_frames: int) -> np.ndarray:
    """What the pusher is told at most. ValueError for another number of actions."""
    if actions_T2.shape != (num_frames, 2):
        raise ValueError(f"actions must be [{num_frames}, 2], one a frame, got {list(actions_T2.shape)}")
    return np.clip(actions_T2, -settings.action_limit, settings.action_limit).astype(np.float64)


def looks_of(settings: BounceSettings, scene: Scene) -> list[Look]:
    return [
        Look(COLORS[color], MATERIALS[material].name if settings.colors else "plain", disc.radius)
        for color, material, disc in zip(scene.colors, scene.materials, scene.discs, strict=True)
    ]


def words_of(settings: BounceSettings, scene: Scene) -> str:
    """The caption."""
    if settings.colors:
        return caption_of(scene.discs, scene.materials, scene.colors)
    return short_caption(scene.materials)


def strikes_of(contacts: Iterable[Contact], materials: tuple[str, ...]) -> list[Strike]:
    """What is heard: of two bodies that meet, both ring."""
    return [
        Strike(contact.time_s, contact.impulse, MATERIALS[materials[body]])
        for contact in contacts
        for body in (contact.body, contact.other_body)
        if body >= 0
    ]
