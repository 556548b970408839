"""World `bounce_one`: one elastic body in four walls, moved by pymunk, each contact seen and heard."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pymunk

from worldmodel.worlds.drawing import draw_discs
from worldmodel.worlds.sound import MATERIALS, contact_sound, safe_gain
from worldmodel.worlds.truth import WALLS, Contact, Truth, read_truth, write_truth

__all__ = ["BounceSettings", "Contact", "Episode", "Truth", "read_truth", "simulate", "write_truth"]

# T frames, K bodies (one here), 2 is x (right) and y (down), N samples, H rows, W columns, C red green blue.

_BODY, _WALL = 1, 2  # pymunk collision types


@dataclass(frozen=True)
class BounceSettings:
    """What `simulate` draws from, in box widths and box widths per second; the box is the picture."""

    speed: tuple[float, float] = (0.4, 1.0)
    radius: tuple[float, float] = (0.10, 0.14)
    off_axis_degrees: float = 15.0
    materials: tuple[str, ...] = tuple(MATERIALS)
    size_px: int = 64
    fps: int = 16
    sample_rate: int = 16000

    def __post_init__(self) -> None:
        unknown = [name for name in self.materials if name not in MATERIALS]
        if unknown or not self.materials:
            raise ValueError(f"materials must be some of {', '.join(MATERIALS)}, got {self.materials}")
        if not 0 < self.speed[0] <= self.speed[1]:
            raise ValueError(f"speed must be 0 < low <= high, got {self.speed}")
        if not 0 < self.radius[0] <= self.radius[1] < 0.5:
            raise ValueError(f"radius must be 0 < low <= high < 0.5 box widths, got {self.radius}")
        if not 0 <= self.off_axis_degrees < 45:
            raise ValueError(f"off_axis_degrees must be in [0, 45), got {self.off_axis_degrees}")
        if min(self.size_px, self.fps, self.sample_rate) <= 0:
            raise ValueError(f"size_px, fps and sample_rate must be positive, got {self}")

    @property
    def gain(self) -> float:
        """One gain for the whole world, so that loudness means impulse."""
        return safe_gain(
            [MATERIALS[name] for name in self.materials],
            largest_impulse=2.0 * self.speed[1],
            shortest_interval_s=(1.0 - 2.0 * self.radius[1]) / self.speed[1],
        )


@dataclass(frozen=True, eq=False)
class Episode:
    """One rendered clip: video_THWC uint8 RGB, audio_N float32 mono in [-1, 1], and what truly happened."""

    video_THWC: np.ndarray
    audio_N: np.ndarray
    truth: Truth


def simulate(settings: BounceSettings, *, seed: int, duration_s: float) -> Episode:
    """Draw, move, render and sound one clip. The same settings and seed give the same bytes."""
    num_frames, num_samples = round(duration_s * settings.fps), round(duration_s * settings.sample_rate)
    if num_frames < 1:
        raise ValueError(
            f"duration_s={duration_s} is less than one frame at {settings.fps} fps; give more seconds"
        )
    rng = np.random.default_rng(seed)
    material = MATERIALS[settings.materials[rng.integers(len(settings.materials))]]
    radius = rng.uniform(*settings.radius)
    start_2 = rng.uniform(radius, 1.0 - radius, size=2)
    speed = rng.uniform(*settings.speed)
    # A body that moves along an axis hits the same spot for ever, so directions keep off the axes.
    angle = math.radians(
        90.0 * rng.integers(4) + rng.uniform(settings.off_axis_degrees, 90.0 - settings.off_axis_degrees)
    )
    velocity = (speed * math.cos(angle), speed * math.sin(angle))

    positions_TK2, velocities_TK2, contacts = _move(
        (float(start_2[0]), float(start_2[1])), velocity, radius, num_frames=num_frames, fps=settings.fps
    )
    truth = Truth(
        world="bounce_one",
        seed=seed,
        fps=settings.fps,
        sample_rate=settings.sample_rate,
        duration_s=num_frames / settings.fps,
        material=material.name,
        caption=material.caption,
        radius_K=np.array([radius]),
        positions_TK2=positions_TK2,
        velocities_TK2=velocities_TK2,
        contacts=tuple(contacts),
    )
    return Episode(
        video_THWC=draw_discs(
            positions_TK2, truth.radius_K, colors=[material.color], size_px=settings.size_px
        ),
        audio_N=contact_sound(
            [(contact.time_s, contact.impulse) for contact in contacts],
            material,
            num_samples=num_samples,
            sample_rate=settings.sample_rate,
            gain=settings.gain,
        ),
        truth=truth,
    )


def _move(
    start: tuple[float, float], velocity: tuple[float, float], radius: float, *, num_frames: int, fps: int
) -> tuple[np.ndarray, np.ndarray, list[Contact]]:
    """States at frame times and contacts of a body of mass 1. Steps of at most 1 ms divide a frame."""
    space = pymunk.Space()
    # Share of an overlap (beyond the slop) left after a second: all, because _settle ends overlaps exactly.
    # With 0, pymunk would push the body out by the overlap once more: up to 1e-3 box widths a contact.
    space.collision_bias = 1.0
    space.collision_slop = 1e-4
    body = pymunk.Body(1.0, math.inf)
    body.position, body.velocity = start, velocity
    shape = pymunk.Circle(body, radius)
    shape.elasticity, shape.friction, shape.collision_type = 1.0, 0.0, _BODY
    space.add(body, shape)
    walls = _add_walls(space)
    touched: list[tuple[str, float]] = []

    def heard(arbiter: pymunk.Arbiter, _space: pymunk.Space, _data: object) -> None:
        if arbiter.is_first_contact:
            touched.append((walls[arbiter.shapes[1]], arbiter.total_impulse.length))

    space.add_collision_handler(_BODY, _WALL).post_solve = heard

    steps_per_frame = math.ceil(1000 / fps)
    step_s = 1.0 / (fps * steps_per_frame)
    positions_TK2, velocities_TK2 = np.empty((num_frames, 1, 2)), np.empty((num_frames, 1, 2))
    contacts: list[Contact] = []
    positions_TK2[0, 0], velocities_TK2[0, 0] = start, velocity
    for frame in range(1, num_frames + 1):  # the last interval reaches the end of the sound
        for step in range(1, steps_per_frame + 1):
            space.step(step_s)
            if touched:
                now_s = (frame - 1) / fps + step * step_s
                contacts += [_settle(body, wall, impulse, radius, now_s) for wall, impulse in touched]
                contacts.sort(key=lambda contact: contact.time_s)
                touched.clear()
        if frame < num_frames:
            positions_TK2[frame, 0], velocities_TK2[frame, 0] = body.position, body.velocity
    return positions_TK2, velocities_TK2, contacts


def _settle(body: pymunk.Body, wall: str, impulse: float, radius: float, now_s: float) -> Contact:
    """The contact at its sub-step time; the body, found inside the wall, goes to where it has bounced to."""
    axis = 0 if wall in ("left", "right") else 1
    limit = radius if wall in ("left", "top") else 1.0 - radius
    position = [body.position.x, body.position.y]
    depth = abs(position[axis] - limit)
    position[axis] = 2.0 * limit - position[axis]
    body.position = (position[0], position[1])
    return Contact(time_s=now_s - depth / abs(body.velocity[axis]), body=0, wall=wall, impulse=impulse)


def _add_walls(space: pymunk.Space) -> dict[pymunk.Shape, str]:
    """Four walls half a box thick; their inner faces are the unit square, their ends overlap at corners."""
    ends = {
        "left": ((-0.5, -1.0), (-0.5, 2.0)),
        "right": ((1.5, -1.0), (1.5, 2.0)),
        "top": ((-1.0, -0.5), (2.0, -0.5)),
        "bottom": ((-1.0, 1.5), (2.0, 1.5)),
    }
    walls: dict[pymunk.Shape, str] = {}
    for name in WALLS:
        wall = pymunk.Segment(space.static_body, *ends[name], radius=0.5)
        wall.elasticity, wall.friction, wall.collision_type = 1.0, 0.0, _WALL
        space.add(wall)
        walls[wall] = name
    return walls
