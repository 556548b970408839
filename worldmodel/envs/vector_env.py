"""`gymnasium.make_vec("worldmodel/pusher")`: many worlds, stepped as one batch for each time they began."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from worldmodel.envs import MAX_EPISODE_STEPS
from worldmodel.envs.interface import Seen, make_backend
from worldmodel.envs.pusher_env import RENDER_MODES, PusherEnv, episode_seed, rendered

# n rows; a row is one world.

Observation = dict[str, np.ndarray]


class PusherVectorEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """Each row is as `PusherEnv` of its seed and actions is, whatever its neighbours do."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        backend: str = "sim",
        model: str = "pusher",
        split: str = "in",
        prefix_s: float | None = None,
        hold_action: bool = False,
        twin: bool = False,
        device: str = "cpu",
        render_mode: str | None = None,
        max_episode_steps: int | None = MAX_EPISODE_STEPS,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        """As PusherEnv. max_episode_steps: chunks until a row is truncated; None or -1: never."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
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
        self.num_envs, self.render_mode = num_envs, render_mode
        self.max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**PusherEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.interface = self.backend.interface
        self.single_action_space = self.interface.action_space
        self.single_observation_space = self.interface.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._last: list[Seen | None] = [None] * num_envs
        self._steps_n = np.zeros(num_envs, int)
        self._ended_n = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """seed: of the first row, from which the others count on, or one a row. options: as PusherEnv, and
        "reset_mask", bool [n]: only these rows begin anew, the others stay as they were seen last."""
        self._check_open()
        options = dict(options or {})
        rows = self._masked(options.pop("reset_mask", None))
        seeds = self._row_seeds(seed)
        warmup_nP2 = self.interface.warmup(options, self.num_envs)
        infos = self._begin(rows, [seeds[row] for row in rows], warmup_nP2[rows], {})
        return self._observations(), infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Rows that ended begin anew as `autoreset_mode` says: in the next step, whose action they ignore, in
        the same one, with info["final_obs"] and info["final_info"], or by reset."""
        self._check_open()
        actions_nC2 = self.interface.actions(actions, self.num_envs)
        if any(seen is None for seen in self._last):
            raise ResetNeeded("step before reset; call reset first")
        ended = np.flatnonzero(self._ended_n).tolist()
        if ended and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(f"rows {ended} have ended; reset them with options={{'reset_mask': mask}}")
        rewards_n, infos = np.zeros(self.num_envs), {}
        going = [row for row in range(self.num_envs) if not self._ended_n[row]]
        if ended:
            infos = self._begin(ended, [None] * len(ended), self._rest(len(ended)), infos)
        if going:
            for row, seen in zip(going, self.backend.step(going, actions_nC2[going]), strict=True):
                self._last[row], rewards_n[row] = seen, seen.reward
                self._steps_n[row] += 1
        limit = np.inf if self.max_episode_steps is None else self.max_episode_steps
        truncated_n = self._steps_n >= limit
        again = np.flatnonzero(truncated_n).tolist() if self.autoreset_mode == AutoresetMode.SAME_STEP else []
        for row in going:
            seen = self._seen(row)
            if row in again:
                final = {"final_obs": seen.observation, "final_info": seen.info}
                infos = self._add_info(infos, final, row)
            else:
                infos = self._add_info(infos, seen.info, row)
        if again:
            infos = self._begin(again, [None] * len(again), self._rest(len(again)), infos)
        self._ended_n = truncated_n & (self.autoreset_mode != AutoresetMode.SAME_STEP)
        return self._observations(), rewards_n, np.zeros(self.num_envs, bool), truncated_n, infos

    def render(self) -> tuple[Any, ...] | None:
        """Of each row, the last frame, or all frames of the last chunk."""
        if self.render_mode is None or any(seen is None for seen in self._last):
            return None
        return tuple(rendered(self._seen(row), self.render_mode) for row in range(self.num_envs))

    def _begin(
        self, rows: list[int], seeds: list[int | None], warmup_RP2: np.ndarray, infos: dict[str, Any]
    ) -> dict[str, Any]:
        """Rows begin anew; what is said of them goes into infos."""
        drawn = []
        for row, seed in zip(rows, seeds, strict=True):
            generator = self._generators[row]
            if generator is None or seed is not None:
                generator, _ = seeding.np_random(seed)
                self._generators[row] = generator
            drawn.append(episode_seed(seed, generator))
        for row, seen in zip(rows, self.backend.begin(rows, drawn, warmup_RP2), strict=True):
            self._last[row], self._steps_n[row], self._ended_n[row] = seen, 0, False
            infos = self._add_info(infos, seen.info, row)
        return infos

    def _observations(self) -> Observation:
        """Row by row on a new first axis."""
        seen = [self._seen(row).observation for row in range(self.num_envs)]
        return {name: np.stack([row[name] for row in seen]) for name in seen[0]}

    def _seen(self, row: int) -> Seen:
        seen = self._last[row]
        assert seen is not None, "every row has begun"
        return seen

    def _rest(self, num: int) -> np.ndarray:
        return self.interface.warmup(None, num)

    def _row_seeds(self, seed: int | list[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"seeds must be one a row, {self.num_envs}, got {len(seed)}")
        return list(seed)

    def _masked(self, mask: Any) -> list[int]:
        if mask is None:
            return list(range(self.num_envs))
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f"options['reset_mask'] must be a bool array of [{self.num_envs}], got {mask!r}")
        rows = np.flatnonzero(mask).tolist()
        if not rows:
            raise ValueError("options['reset_mask'] names no row; set at least one")
        if unbegun := [row for row, seen in enumerate(self._last) if seen is None and row not in rows]:
            raise ResetNeeded(f"rows {unbegun} have never begun; reset all rows first")
        return rows

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this environment is closed; make another one")
