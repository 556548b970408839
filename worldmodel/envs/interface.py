"""What an agent is given and may do: spaces, the state as numbers, the reward, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from worldmodel.worlds.live import State
from worldmodel.worlds.settings import BounceSettings, world_settings

# R rows, C frames of a chunk, P frames of the beginning, H W pixels, N samples, S state values, K bodies.

WORLD = "pusher"
CHUNK_FRAMES, PREFIX_S = 4, 1.0  # of the simulator; a model brings its own
MAX_SPEED = 8.0  # box widths/s of anything in a state: ten times what the pusher is told at most
PUSHER_VALUES, BODY_VALUES = 4, 5
OPTIONS = ("actions_warmup",)


@dataclass(frozen=True, eq=False)
class Seen:
    """One row's observation, and what is said beside it."""

    video_CHWC: np.ndarray
    audio_N: np.ndarray
    state_S: np.ndarray
    info: dict[str, Any]

    @property
    def observation(self) -> dict[str, np.ndarray]:
        return {"video": self.video_CHWC, "audio": self.audio_N, "state": self.state_S}

    @property
    def reward(self) -> float:
        """Minus the distance from the pusher to the nearest ball, in box widths."""
        bodies_KV = self.state_S[PUSHER_VALUES:].reshape(-1, BODY_VALUES).astype(np.float64)
        away_K = np.hypot(bodies_KV[:, 1] - self.state_S[0], bodies_KV[:, 2] - self.state_S[1])
        return -float(away_K[bodies_KV[:, 0] > 0].min())


@dataclass(frozen=True)
class Interface:
    """Rates, sizes and spaces of one environment. prefix_frames: whole chunks that come before the first
    action."""

    settings: BounceSettings
    chunk_frames: int
    prefix_frames: int
    hold_action: bool = False

    @classmethod
    def of(cls, split: str, *, chunk_frames: int, prefix_s: float, hold_action: bool) -> Interface:
        """ValueError for an unknown split, or a beginning that is not of whole chunks."""
        settings = world_settings(WORLD, split)
        frames, near = prefix_s * settings.fps, max(1, round(prefix_s * settings.fps / chunk_frames))
        if abs(frames - near * chunk_frames) > 1e-6:
            raise ValueError(
                f"prefix_s={prefix_s} is not of whole chunks of {chunk_frames / settings.fps:g} s; "
                f"use {near * chunk_frames / settings.fps:g}"
            )
        return cls(settings, chunk_frames, near * chunk_frames, hold_action)

    @property
    def samples(self) -> int:
        """Of the sound of one chunk."""
        return self.chunk_frames * self.settings.sample_rate // self.settings.fps

    @cached_property
    def action_space(self) -> spaces.Box:
        shape = (2,) if self.hold_action else (self.chunk_frames, 2)
        limit = self.settings.action_limit
        return spaces.Box(-limit, limit, shape, np.float32)

    @cached_property
    def state_space(self) -> spaces.Box:
        moves = [1.0, 1.0, MAX_SPEED, MAX_SPEED]
        high_S = np.array(moves + [1.0, *moves] * self.settings.bodies[1], np.float32)
        low_S = np.where(high_S == MAX_SPEED, -MAX_SPEED, 0.0).astype(np.float32)
        return spaces.Box(low_S, high_S, dtype=np.float32)

    @cached_property
    def observation_space(self) -> spaces.Dict:
        size = self.settings.size_px
        return spaces.Dict(
            {
                "video": spaces.Box(0, 255, (self.chunk_frames, size, size, 3), np.uint8),
                "audio": spaces.Box(-1.0, 1.0, (self.samples,), np.float32),
                "state": self.state_space,
            }
        )

    def state_values(self, state: State) -> np.ndarray:
        """float32 [S]: the pusher's x, y, vx, vy; of each body that may be there: present, x, y, vx, vy."""
        values = np.zeros(PUSHER_VALUES + BODY_VALUES * self.settings.bodies[1], np.float32)
        values[:2], values[2:4] = state.pusher_2, state.pusher_velocity_2
        bodies_KV = values[PUSHER_VALUES:].reshape(-1, BODY_VALUES)
        there = len(state.positions_K2)
        bodies_KV[:there, 0] = 1.0
        bodies_KV[:there, 1:3], bodies_KV[:there, 3:5] = state.positions_K2, state.velocities_K2
        return np.clip(values, self.state_space.low, self.state_space.high)

    def actions(self, given: Any, num: int) -> np.ndarray:
        """[num, C, 2] of finite numbers, or ValueError. The world itself keeps them within its limit."""
        one = self.action_space.shape
        actions = np.asarray(given)
        if actions.shape != (num, *one) or actions.dtype.kind not in "fiu":
            raise ValueError(
                f"actions must be numbers of {[num, *one]}, got {actions.dtype} of {list(actions.shape)}"
            )
        if not np.isfinite(actions).all():
            raise ValueError("actions hold NaN or infinity; give finite box widths per second")
        actions = actions.astype(np.float32)
        if self.hold_action:
            return np.repeat(actions[:, None], self.chunk_frames, axis=1)
        return actions

    def warmup(self, options: dict[str, Any] | None, num: int) -> np.ndarray:
        """Actions [num, P - 1, 2] before the first one of the agent; rest unless options give others."""
        options = options or {}
        if unknown := [name for name in options if name not in OPTIONS]:
            raise ValueError(f"options of reset are {', '.join(OPTIONS)}, got {', '.join(map(str, unknown))}")
        wanted = (self.prefix_frames - 1, 2)
        given = np.asarray(options.get("actions_warmup", np.zeros(wanted)))
        if given.shape not in (wanted, (num, *wanted)) or not np.isfinite(given).all():
            raise ValueError(
                f"options['actions_warmup'] must be finite of {list(wanted)}: one for each frame of the "
                f"beginning but its last; got {list(given.shape)}"
            )
        return np.broadcast_to(given, (num, *wanted)).astype(np.float32)


class Backend(Protocol):
    """Rows of worlds that begin and step. A row that begins again forgets its past."""

    interface: Interface

    def begin(self, rows: list[int], seeds: list[int], warmup_RP2: np.ndarray) -> list[Seen]: ...

    def step(self, rows: list[int], actions_RC2: np.ndarray) -> list[Seen]: ...


def make_backend(
    name: str, *, model: str, split: str, prefix_s: float | None, hold_action: bool, twin: bool, device: str
) -> Backend:
    """ "sim" or "model"; the latter loads the model. ValueError says what is missing."""
    if name == "sim":
        from worldmodel.envs.sim_backend import SimBackend

        interface = Interface.of(
            split,
            chunk_frames=CHUNK_FRAMES,
            prefix_s=PREFIX_S if prefix_s is None else prefix_s,
            hold_action=hold_action,
        )
        return SimBackend(interface, twin=twin)
    if name == "model":
        from worldmodel.envs.model_backend import ModelBackend

        return ModelBackend.load(
            model, split=split, prefix_s=prefix_s, hold_action=hold_action, twin=twin, device=device
        )
    raise ValueError(f"backend must be 'sim' or 'model', got {name!r}")
