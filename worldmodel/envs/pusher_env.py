"""`gymnasium.make("worldmodel/pusher")`: one world. A step is one chunk of pictures with their sound."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded

from worldmodel.envs.interface import Seen, make_backend

RENDER_MODES = ("rgb_array", "rgb_array_list")


class PusherEnv(gymnasium.Env[Any, np.ndarray]):
    """A disc follows actions among balls that it may push; reward: minus its distance to the nearest one.

    action [C, 2], box widths/s: action[0] leads from the last frame seen to the first of the next chunk, and
    so on. Sound and picture end together, with the moment of the last frame.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 16}  # noqa: RUF012  Gymnasium's own type

    def __init__(
        self,
        backend: str = "sim",
        *,
        model: str = "pusher",
        split: str = "in",
        prefix_s: float | None = None,
        hold_action: bool = False,
        twin: bool = False,
        device: str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        """backend: "sim", or "model", which continues a simulated beginning of `prefix_s` (default: as the
        model says, or 1 s). hold_action: the action is [2] and held for the chunk. twin: info["gt_state"] is
        the simulator's under the same actions. ValueError says what is missing."""
        if render_mode not in (None, *RENDER_MODES):
            raise ValueError(f"render_mode must be one of {', '.join(RENDER_MODES)}, got {render_mode!r}")
        self.backend = make_backend(
            backend,
            model=model,
            split=split,
            prefix_s=prefix_s,
            hold_action=hold_action,
            twin=twin,
            device=device,
        )
        self.interface, self.render_mode = self.backend.interface, render_mode
        self.action_space = self.interface.action_space
        self.observation_space = self.interface.observation_space
        self._last: Seen | None = None
        self._is_closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The last chunk of the beginning. The scene is that of `simulate(..., seed=info["seed"])`, which is
        `seed` where it is given and else drawn. options: "actions_warmup" [P - 1, 2] leads through the P
        frames of the beginning, in which the pusher otherwise rests."""
        self._check_open()
        warmup_RP2 = self.interface.warmup(options, 1)
        super().reset(seed=seed)
        (self._last,) = self.backend.begin([0], [episode_seed(seed, self.np_random)], warmup_RP2)
        return self._last.observation, self._last.info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Nothing ends an episode but its length. Actions beyond the limit are held to it; NaN and other
        shapes are a ValueError."""
        self._check_open()
        if self._last is None:
            raise ResetNeeded("step before reset; call reset first")
        actions_RC2 = self.interface.actions(np.asarray(action)[None], 1)
        (self._last,) = self.backend.step([0], actions_RC2)
        return self._last.observation, self._last.reward, False, False, self._last.info

    def render(self) -> Any:
        """The last frame, or all frames of the last chunk."""
        if self._last is None or self.render_mode is None:
            return None
        return rendered(self._last, self.render_mode)

    def close(self) -> None:
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedEnvironmentError("this environment is closed; make another one")


def rendered(seen: Seen, render_mode: str) -> Any:
    frames = [frame.copy() for frame in seen.video_CHWC]
    return frames if render_mode == "rgb_array_list" else frames[-1]


def episode_seed(seed: int | None, generator: np.random.Generator) -> int:
    """The seed itself where one is given; else the next draw."""
    return int(generator.integers(2**31)) if seed is None else int(seed)
