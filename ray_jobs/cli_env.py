"""`worldmodel env`: an environment for agents, its spaces, and a look at what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ray_jobs.cli_output import Json, answer
from ray_jobs.errors import UserError

SIM = "sim"


def env(
    model: Annotated[str, typer.Argument(help="sim, or a shipped name, exported folder or run")],
    steps: Annotated[int, typer.Option(help="chunks to play with random actions", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="of the scene and of the actions", min=0)] = 0,
    split: Annotated[str, typer.Option(help="in, ood_speed, ood_size or ood_count")] = "in",
    prefix: Annotated[
        float | None, typer.Option(help="seconds of simulated beginning; default: as the model, or 1")
    ] = None,
    hold_action: Annotated[
        bool, typer.Option("--hold-action", help="one velocity for a whole chunk instead of one a frame")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="an .mp4 of what was seen and heard")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="a .png of it; of a model, with the simulator's below")
    ] = None,
    as_json: Json = False,
) -> None:
    """World `pusher` as a Gymnasium environment: the simulator, or a model of it, under random actions."""
    if out is not None and out.suffix.lower() != ".mp4":
        raise UserError(f"--out {out}: clips are written as .mp4; use {out.with_suffix('.mp4')}")
    if picture is not None and picture.suffix.lower() != ".png":
        raise UserError(f"--picture {picture}: it is written as .png; use {picture.with_suffix('.png')}")
    if model != SIM:
        from ray_jobs.models import find_model

        find_model(model)  # before the imports that cost seconds
    import gymnasium

    from worldmodel.envs import PUSHER

    def make(name: str, prefix_s: float | None) -> Any:
        return gymnasium.make(
            PUSHER,
            max_episode_steps=steps,
            backend=SIM if name == SIM else "model",
            model=name,
            split=split,
            prefix_s=prefix_s,
            hold_action=hold_action,
        )

    try:
        world = make(model, prefix)
    except ValueError as error:
        raise UserError(str(error)) from None
    seen, found = _play(world, steps, seed)
    settings = world.unwrapped.interface.settings
    if out is not None:
        _write(out, seen, settings)
    if picture is not None:
        bands = {Path(model).name: seen}
        if model != SIM:
            given_s = world.unwrapped.interface.prefix_frames / settings.fps
            bands["the simulator, under the same actions"] = _play(make(SIM, given_s), steps, seed)[0]
        _draw(picture, bands)
    found |= {"out": out and str(out), "picture": picture and str(picture)}
    lines = [f"{key}: {value}" for key, value in found.items() if value is not None]
    answer(found, as_json, "\n".join(lines))


def _play(world: Any, steps: int, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Random actions to the end of one episode: observations, each but the first with the action that led to
    it, and what is said about them."""
    observation, info = world.reset(seed=seed)
    world.action_space.seed(seed)
    seen, rewards = [observation], []
    for _ in range(steps):
        action = world.action_space.sample()
        observation, reward, _, _, info = world.step(action)
        seen.append({**observation, "action": action})
        rewards.append(reward)
    return seen, {
        "action_space": str(world.action_space),
        "observation_space": {
            name: str(space) if name != "state" else f"Box({space.shape}, {space.dtype})"
            for name, space in world.observation_space.items()
        },
        "caption": info["caption"],
        "state_from": info["state_from"],
        "steps": steps,
        "mean_reward": round(sum(rewards) / steps, 4),
        "last_state": [round(float(value), 4) for value in observation["state"]],
    }


def _draw(picture: Path, bands: dict[str, list[dict[str, Any]]]) -> None:
    import numpy as np

    from ray_jobs.env_picture import Played, write_env_picture

    episodes = []
    for title, seen in bands.items():
        video, audio, state, action = (
            np.stack([one[name] for one in seen[1:]]) for name in ("video", "audio", "state", "action")
        )
        held = action[:, None] if action.ndim == 2 else action
        episodes.append(Played(title, video, audio, held, state))
    write_env_picture(picture, episodes)


def _write(out: Path, seen: list[dict[str, Any]], settings: Any) -> None:
    """Sound of an observation ends with its last frame, so that it begins one frame before its first."""
    import numpy as np

    from avtok.mux import write_clip

    frame = settings.sample_rate // settings.fps
    audio_N = np.concatenate([*(one["audio"] for one in seen), np.zeros(frame, np.float32)])[frame:]
    video_THWC = np.concatenate([one["video"] for one in seen])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_clip(out, video_THWC, audio_N, fps=settings.fps, sample_rate=settings.sample_rate)
