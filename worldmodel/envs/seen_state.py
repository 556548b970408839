"""The state of a world as its pictures show it: bodies are found by their colours, known from the start."""

from __future__ import annotations

import numpy as np

from worldmodel.checks.track_many import track_bodies
from worldmodel.checks.track_pusher import track_pusher
from worldmodel.envs.interface import Interface
from worldmodel.worlds.live import State

# K bodies, C frames of a chunk, H W pixels, 2 is x (right) and y (down).


class SeenState:
    """What is not seen stays where it was, at rest."""

    def __init__(self, interface: Interface, colors: tuple[str, ...]) -> None:
        self._fps, self._colors = interface.settings.fps, colors
        self._most = interface.settings.bodies[1]
        self._last_J2 = np.full((1 + len(colors), 2), 0.5)  # the pusher, then the bodies

    def of(self, video_CHWC: np.ndarray) -> tuple[State, np.ndarray]:
        """The state at the last frame, and what of it was seen: the pusher, then each body that may be there.
        A velocity is the way from the frame before."""
        two_HWC = video_CHWC[-2:]
        places = np.concatenate([track_pusher(two_HWC)[:, None], track_bodies(two_HWC, self._colors)], axis=1)
        before_J2, now_J2 = places
        is_seen_J = np.isfinite(now_J2).all(axis=1)
        moved_J2 = np.nan_to_num((now_J2 - before_J2) * self._fps, nan=0.0)
        self._last_J2 = np.where(is_seen_J[:, None], now_J2, self._last_J2)
        seen = np.zeros(1 + self._most, bool)
        seen[: len(is_seen_J)] = is_seen_J
        at_J2 = self._last_J2
        return State(at_J2[0], moved_J2[0], at_J2[1:], moved_J2[1:]), seen
