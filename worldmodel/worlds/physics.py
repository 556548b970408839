"""How bodies move: pymunk in steps of at most 1 ms, contacts put back to the instant they happened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pymunk

from worldmodel.worlds.truth import WALLS, Contact

# T frames, K bodies, 2 is x (right) and y (down).

_BODY, _WALL, _PUSHER = 1, 2, 3  # pymunk collision types
PUSHER_MASS = 4.0
PUSHER_ACCELERATION = 40.0  # box widths/s^2: any action is followed within a frame, and no ball is crushed
QUIETEST_IMPULSE = 1e-3  # a ball held against a wall touches it every step; that is not heard


@dataclass(frozen=True)
class Disc:
    """One body at time 0: box widths, box widths/s, and the mass of the standard ball as unit."""

    position: tuple[float, float]
    velocity: tuple[float, float]
    radius: float
    mass: float = 1.0


@dataclass(frozen=True, eq=False)
class Motion:
    """States at frame times, contacts in the order of time, and the pusher's path where there is one."""

    positions_TK2: np.ndarray
    velocities_TK2: np.ndarray
    contacts: tuple[Contact, ...]
    pusher_T2: np.ndarray | None = None


def move(
    discs: Sequence[Disc],
    *,
    num_frames: int,
    fps: int,
    damping: float = 1.0,
    pusher: Disc | None = None,
    actions_T2: np.ndarray | None = None,
) -> Motion:
    """Steps divide a frame. damping: share of a velocity that is left after a second.

    actions_T2[i] is the velocity that the pusher is told to have from frame i to frame i + 1. The last
    interval has no frame at its end: it reaches the end of the sound.
    """
    mover = Mover(discs, fps=fps, damping=damping, pusher=pusher)
    positions_TK2, velocities_TK2 = np.empty((2, num_frames, len(discs), 2))
    pusher_T2 = np.empty((num_frames, 2))
    for frame in range(num_frames):
        positions_TK2[frame], velocities_TK2[frame] = mover.bodies()
        if pusher is not None:
            pusher_T2[frame], _ = mover.pusher()
        mover.advance(None if actions_T2 is None else actions_T2[frame])
    contacts = mover.take_contacts()
    return Motion(positions_TK2, velocities_TK2, contacts, None if pusher is None else pusher_T2)


class Mover:
    """The bodies from frame to frame; `frame` is the one that they have reached."""

    def __init__(
        self, discs: Sequence[Disc], *, fps: int, damping: float = 1.0, pusher: Disc | None = None
    ) -> None:
        self.fps, self.frame = fps, 0
        self._table = _Table(discs, damping=damping, pusher=pusher)
        self._steps_per_frame = math.ceil(1000 / fps)
        self._step_s = 1.0 / (fps * self._steps_per_frame)

    def bodies(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities [K, 2] at this frame."""
        bodies = self._table.bodies
        return np.array([b.position for b in bodies]), np.array([b.velocity for b in bodies])

    def pusher(self) -> tuple[np.ndarray, np.ndarray]:
        """Its position and velocity [2]; only where there is one."""
        assert self._table.pusher is not None, "this world has no pusher"
        return np.array(self._table.pusher.position), np.array(self._table.pusher.velocity)

    def advance(self, action_2: np.ndarray | None = None) -> None:
        """To the next frame, while the pusher is told to have this velocity; none is rest."""
        table, step_s = self._table, self._step_s
        wanted = (0.0, 0.0) if action_2 is None else (float(action_2[0]), float(action_2[1]))
        for step in range(1, self._steps_per_frame + 1):
            if table.pusher is not None:
                table.steer(table.pusher, wanted, step_s)
            table.space.step(step_s)
            if table.touched:
                table.settle(self.frame / self.fps + step * step_s)
        self.frame += 1

    def take_contacts(self) -> tuple[Contact, ...]:
        """All since the last call, in the order of time."""
        contacts = sorted(self._table.contacts, key=lambda contact: contact.time_s)
        self._table.contacts.clear()
        return tuple(contacts)


@dataclass(frozen=True)
class _Touch:
    """What pymunk found at the end of a step: who overlaps whom, and the impulse that `body` was given."""

    body: pymunk.Body
    other: pymunk.Body | None
    wall: str
    impulse: tuple[float, float]
    depth: float


class _Table:
    """The pymunk space: four walls half a box thick around the unit square, the bodies, and the pusher."""

    def __init__(self, discs: Sequence[Disc], *, damping: float, pusher: Disc | None) -> None:
        self.contacts: list[Contact] = []
        self.touched: list[_Touch] = []
        self.space = pymunk.Space()
        # Share of an overlap (beyond the slop) left after a second: all, because `settle` ends overlaps
        # exactly. With 0, pymunk would push the body out by the overlap once more: up to 1e-3 box widths a
        # contact.
        self.space.collision_bias = 1.0
        self.space.collision_slop = 1e-4
        self.space.damping = damping
        self.radius: dict[pymunk.Body, float] = {}
        self.bodies = [self._add(disc, _BODY) for disc in discs]
        self.number = {body: index for index, body in enumerate(self.bodies)}
        self.pusher = None if pusher is None else self._add(pusher, _PUSHER)
        self.walls = self._add_walls()
        for kinds in ((_BODY, _WALL), (_PUSHER, _WALL), (_BODY, _BODY), (_BODY, _PUSHER)):
            self.space.add_collision_handler(*kinds).post_solve = self._on_contact

    def steer(self, pusher: pymunk.Body, wanted: tuple[float, float], step_s: float) -> None:
        """Brings the pusher's velocity towards the action by a bounded acceleration."""
        now_x, now_y = pusher.velocity
        x, y = wanted[0] - now_x, wanted[1] - now_y
        share = min(1.0, PUSHER_ACCELERATION * step_s / max(math.hypot(x, y), 1e-12))
        pusher.velocity = (now_x + share * x, now_y + share * y)

    def settle(self, now_s: float) -> None:
        """Contacts at their sub-step times; bodies, found overlapping, go to where they have bounced to."""
        for touch in self.touched:
            late_s = self._leave_wall(touch.body, touch.wall) if touch.other is None else _part(touch)
            self._note(touch, now_s - late_s)
        self.touched.clear()

    def _leave_wall(self, body: pymunk.Body, wall: str) -> float:
        """Mirrors the body at the wall that it has crossed; returns how long ago it touched."""
        axis = 0 if wall in ("left", "right") else 1
        limit = self.radius[body] if wall in ("left", "top") else 1.0 - self.radius[body]
        position = [body.position.x, body.position.y]
        depth = abs(position[axis] - limit)
        position[axis] = 2.0 * limit - position[axis]
        body.position = (position[0], position[1])
        return depth / max(abs(body.velocity[axis]), 1e-9)

    def _note(self, touch: _Touch, time_s: float) -> None:
        size = math.hypot(*touch.impulse)
        body, other = self.number.get(touch.body), self.number.get(touch.other) if touch.other else None
        if size < QUIETEST_IMPULSE or (body is None and other is None):
            return  # the pusher wears felt: nobody hears it touch a wall
        if body is None or (touch.other is not None and other is None):
            ball = other if body is None else body
            self.contacts.append(Contact(time_s, int(ball or 0), "pusher", size))
        elif other is not None:
            low, high = sorted((body, other))
            self.contacts.append(Contact(time_s, low, "body", size, other_body=high))
        else:
            self.contacts.append(Contact(time_s, body, touch.wall, size))

    def _on_contact(self, arbiter: pymunk.Arbiter, _space: pymunk.Space, _data: object) -> None:
        if not arbiter.is_first_contact:
            return
        first, second = arbiter.shapes
        wall = self.walls.get(second, "")
        depth = max((-point.distance for point in arbiter.contact_point_set.points), default=0.0)
        impulse = arbiter.total_impulse
        self.touched.append(
            _Touch(first.body, None if wall else second.body, wall, (impulse.x, impulse.y), depth)
        )

    def _add(self, disc: Disc, kind: int) -> pymunk.Body:
        body = pymunk.Body(disc.mass, math.inf)
        body.position, body.velocity = disc.position, disc.velocity
        shape = pymunk.Circle(body, disc.radius)
        shape.elasticity, shape.friction, shape.collision_type = 1.0, 0.0, kind
        self.space.add(body, shape)
        self.radius[body] = disc.radius
        return body

    def _add_walls(self) -> dict[pymunk.Shape, str]:
        """Their inner faces are the unit square, their ends overlap at corners."""
        ends = {
            "left": ((-0.5, -1.0), (-0.5, 2.0)),
            "right": ((1.5, -1.0), (1.5, 2.0)),
            "top": ((-1.0, -0.5), (2.0, -0.5)),
            "bottom": ((-1.0, 1.5), (2.0, 1.5)),
        }
        walls: dict[pymunk.Shape, str] = {}
        for name in WALLS:
            wall = pymunk.Segment(self.space.static_body, *ends[name], radius=0.5)
            wall.elasticity, wall.friction, wall.collision_type = 1.0, 0.0, _WALL
            self.space.add(wall)
            walls[wall] = name
        return walls


def _part(touch: _Touch) -> float:
    """Moves two discs to where they would be had they bounced when they touched, `late_s` ago.

    Elastic: they part as fast as they came, so the overlap over that speed is how late the step found it. In
    that time each went on by what the impulse has changed.
    """
    one, two = touch.body, touch.other
    if two is None:
        return 0.0
    x, y = touch.impulse
    size = math.hypot(x, y)
    apart = (
        abs((one.velocity.x - two.velocity.x) * x + (one.velocity.y - two.velocity.y) * y) / size
        if size
        else 0.0
    )
    if apart < 1e-6:
        return 0.0
    late_s = touch.depth / apart
    # pymunk's impulse is the one on the second body's side or the first's, by version: the one that parts.
    sign = math.copysign(1.0, (one.position.x - two.position.x) * x + (one.position.y - two.position.y) * y)
    for body, way in ((one, sign), (two, -sign)):
        step = way * late_s / body.mass
        body.position = (body.position.x + step * x, body.position.y + step * y)
    return late_s
