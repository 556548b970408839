"""Environments: frames per second of the simulator on one core, and what a vector adds to the bare model.

sim_fps_per_core: one process, one thread, random actions through `gymnasium.make(...).step`, with picture and
sound. vector_overhead: time of a vector's step over that of `RolloutSessions.step` and decoding of as many
sessions, minus 1; interleaved pairs of several steps each, the median of them. Both decode the same latents.
"""

from __future__ import annotations

import time
from statistics import median

import gymnasium
import torch
import torch.nn.functional as F

from ray_jobs.bench import Measured
from ray_jobs.models import find_model
from worldmodel.envs import PUSHER
from worldmodel.envs.model_backend import ModelBackend
from worldmodel.envs.vector_env import PusherVectorEnv

MODEL, ROWS, PAIRS, STEPS_A_PAIR, SIM_ROUNDS, SIM_STEPS = "pusher", 8, 7, 4, 7, 250


def run(smoke: bool) -> Measured:
    return measure(MODEL, pairs=2 if smoke else PAIRS, sim_rounds=2 if smoke else SIM_ROUNDS)


def measure(name: str, *, pairs: int, sim_rounds: int) -> Measured:
    """The same of another model: a folder or a run."""
    folder, threads = find_model(name), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = [_sim_rate(number) for number in range(sim_rounds)]
        timed = _pairs(str(folder), pairs)
    finally:
        torch.set_num_threads(threads)
    return Measured(
        figures={
            "sim_fps_per_core": median(rates),
            "vector_overhead": median(vector / bare for vector, bare in timed) - 1.0,
        },
        raw={"sim_fps": rates, "vector_and_bare_s_a_step": timed},
        n=pairs,
        baseline={
            "bare_s_a_step": median(bare for _, bare in timed),
            "vector_s_a_step": median(vector for vector, _ in timed),
        },
        config=f"rows: {ROWS}\nsteps_a_pair: {STEPS_A_PAIR}\nsim_steps: {SIM_STEPS}\nthreads: 1\n",
    )


def _sim_rate(seed: int) -> float:
    """Frames per second of CPU time, so that a busy neighbour counts little."""
    env = gymnasium.make(PUSHER, max_episode_steps=-1)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(SIM_STEPS)]
    began = time.process_time()
    for action in actions:
        env.step(action)
    spent_s = time.process_time() - began
    return SIM_STEPS * env.unwrapped.interface.chunk_frames / spent_s


def _pairs(model: str, pairs: int) -> list[tuple[float, float]]:
    """Seconds a step of (vector, bare), in turn; the order within a pair changes from one to the next."""
    vector, other = (
        PusherVectorEnv(ROWS, backend="model", model=model, max_episode_steps=None) for _ in range(2)
    )
    vector.reset(seed=0)
    other.reset(seed=0)
    vector.action_space.seed(0)
    backend = other.backend
    assert isinstance(backend, ModelBackend), "the vector runs a model"
    (bare,) = backend.sessions()
    unused = backend.pipe.cfg.model.action_dim - 2
    found = []
    for number in range(-1, pairs):  # the first pair warms up
        times = {}
        for kind in ("vector", "bare") if number % 2 else ("bare", "vector"):
            actions = [vector.action_space.sample() for _ in range(STEPS_A_PAIR)]
            began = time.perf_counter()
            for action in actions:
                if kind == "vector":
                    vector.step(action)
                else:
                    bare.step(F.pad(torch.from_numpy(action), (0, unused)))
                    backend.decode(bare)
            times[kind] = (time.perf_counter() - began) / STEPS_A_PAIR
        if number >= 0:
            found.append((times["vector"], times["bare"]))
    return found
