"""A world of `simulate` that is stepped: the same seed and actions give its frames and, in sum, its sound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldmodel.worlds.bounce import draw_start, looks_of, strikes_of, within_limit, words_of
from worldmodel.worlds.drawing import draw_scene
from worldmodel.worlds.physics import Mover
from worldmodel.worlds.settings import PUSHER_RADIUS, BounceSettings
from worldmodel.worlds.sound import RunningSound

# T frames of a piece, K bodies, N samples, 2 is x (right) and y (down).


@dataclass(frozen=True, eq=False)
class Piece:
    """video_THWC uint8 RGB, and mono float32 audio_N up to the moment of its last frame."""

    video_THWC: np.ndarray
    audio_N: np.ndarray


@dataclass(frozen=True, eq=False)
class State:
    """Positions in box widths and velocities in box widths/s at the last frame; zeros without a pusher."""

    pusher_2: np.ndarray
    pusher_velocity_2: np.ndarray
    positions_K2: np.ndarray
    velocities_K2: np.ndarray


class LiveWorld:
    """Sound is heard up to the frame that was seen last: what follows depends on an action yet to come.

    Frame i is the state at i / fps s, and actions_T2[i] leads from frame i to frame i + 1, as in `simulate`.
    """

    def __init__(self, settings: BounceSettings, *, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.scene = draw_start(settings, np.random.default_rng(seed))
        self.caption = words_of(settings, self.scene)
        self._looks = looks_of(settings, self.scene)
        self._mover = Mover(
            self.scene.discs, fps=settings.fps, damping=settings.damping, pusher=self.scene.pusher
        )
        self._sound = RunningSound(sample_rate=settings.sample_rate, gain=settings.gain)

    @property
    def frame(self) -> int:
        """Number of the frame that was reached."""
        return self._mover.frame

    def begin(self, num_frames: int, actions_T2: np.ndarray | None = None) -> Piece:
        """The first frames, and their sound after a frame's worth of silence: nothing was before the first.
        actions_T2: [num_frames - 1, 2]; without them the pusher rests."""
        piece = self._play(num_frames - 1, actions_T2, first=True)
        silence_N = np.zeros(self._samples_at(1), np.float32)
        return Piece(piece.video_THWC, np.concatenate([silence_N, piece.audio_N]))

    def advance(self, num_frames: int, actions_T2: np.ndarray | None = None) -> Piece:
        """The next frames. actions_T2: [num_frames, 2], of which the first leads into the first of them."""
        return self._play(num_frames, actions_T2, first=False)

    def state(self) -> State:
        rest_2 = np.zeros(2)
        pusher = (rest_2, rest_2) if self.scene.pusher is None else self._mover.pusher()
        return State(*pusher, *self._mover.bodies())

    def _play(self, num_frames: int, actions_T2: np.ndarray | None, *, first: bool) -> Piece:
        """ValueError for actions of another number than frames, or without a pusher."""
        if actions_T2 is not None:
            if self.scene.pusher is None:
                raise ValueError(f"world {self.settings.world} has no pusher; actions are for world 'pusher'")
            actions_T2 = within_limit(self.settings, actions_T2, num_frames)
        began = self._samples_at(self.frame)
        states = [self.state()] if first else []
        for index in range(num_frames):
            self._mover.advance(None if actions_T2 is None else actions_T2[index])
            states.append(self.state())
        video_THWC, _ = draw_scene(
            np.stack([state.positions_K2 for state in states]),
            self._looks,
            size_px=self.settings.size_px,
            pusher_T2=None if self.scene.pusher is None else np.stack([state.pusher_2 for state in states]),
            pusher_radius=PUSHER_RADIUS,
            occluder=self.scene.occluder,
        )
        strikes = strikes_of(self._mover.take_contacts(), self.scene.materials)
        return Piece(video_THWC, self._sound.add(strikes, self._samples_at(self.frame) - began))

    def _samples_at(self, frame: int) -> int:
        return round(frame * self.settings.sample_rate / self.settings.fps)
