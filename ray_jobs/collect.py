"""Episodes of a simulator as .mp4 clips with sound, actions and a manifest, by Ray actors.

The caller has initialised Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ray_jobs.errors import JobError, UserError
from ray_jobs.render import MANIFEST_FILE, clip_name, clip_seed
from ray_jobs.simulators import vizdoom

TRIES = 3  # of one episode: an engine is a process of C++
SIMULATORS = ("vizdoom",)
SIMULATOR_FILE = "simulator.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Collection:
    """What to play: `episodes` of at most `seconds` each. Its seed and its number make an episode."""

    scenario: str
    episodes: int
    seconds: float
    seed: int
    out: str

    @property
    def num_tics(self) -> int:
        return round(self.seconds * vizdoom.TICS_PER_S)


def check_collection(simulator: str, wanted: Collection, actors: int) -> None:
    """UserError for what cannot be collected; needs no Ray."""
    if simulator not in SIMULATORS:
        raise UserError(f"no simulator is named {simulator!r}; there is {', '.join(SIMULATORS)}")
    if wanted.episodes < 1:
        raise UserError(f"--episodes must be at least 1, got {wanted.episodes}")
    if actors < 1:
        raise UserError(f"--actors must be at least 1, got {actors}")
    if wanted.seed < 0:
        raise UserError(f"--seed must be at least 0, got {wanted.seed}")
    if wanted.num_tics < 1:
        raise UserError(
            f"--seconds {wanted.seconds:g}: a frame takes 1/{vizdoom.TICS_PER_S} s; use more seconds"
        )
    ours = {clip_name(index) for index in range(wanted.episodes)}
    others = [path.name for path in Path(wanted.out).glob("*.mp4") if path.name not in ours]
    if others:  # they would be taken for episodes of this collection by whoever indexes the folder
        raise UserError(
            f"{wanted.out} holds {len(others)} other clips, such as {min(others)}; use an empty folder"
        )
    vizdoom.check_vizdoom(wanted.scenario)


def collect(
    simulator: str,
    wanted: Collection,
    *,
    actors: int,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Play all episodes into the folder `wanted.out`, which every worker must reach; return the manifest.

    The same collection gives the same bytes with any number of actors. An actor that dies is replaced and its
    episode played again. The manifest comes last: a folder with one is complete. JobError for an episode
    that failed three times.
    """
    check_collection(simulator, wanted, actors)
    folder = Path(wanted.out)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST_FILE
    manifest.unlink(missing_ok=True)
    rows = _play_all(wanted, min(actors, wanted.episodes, _most_actors()), progress)
    about = {
        "simulator": simulator,
        "scenario": wanted.scenario,
        "seed": wanted.seed,
        "fps": vizdoom.TICS_PER_S,
        "sample_rate": vizdoom.SAMPLE_RATE,
        "actions": vizdoom.buttons_of(wanted.scenario),
    }
    (folder / SIMULATOR_FILE).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(manifest)


def _most_actors() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _play_all(wanted: Collection, num_actors: int, progress: Callable[[int, int], None] | None) -> list[Row]:
    waiting = list(range(wanted.episodes))[::-1]
    tries = dict.fromkeys(waiting, 0)
    rows: dict[int, Row] = {}
    idle = [_player() for _ in range(num_actors)]
    playing: dict[ray.ObjectRef, tuple[Any, int]] = {}
    while waiting or playing:
        while waiting and idle:
            index, player = waiting.pop(), idle.pop()
            tries[index] += 1
            playing[player.play.remote(wanted, index)] = (player, index)
        done, _ = ray.wait(list(playing), num_returns=1)
        player, index = playing.pop(done[0])
        try:
            rows[index] = ray.get(done[0])
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
                raise error.cause from None
            if tries[index] == TRIES:
                raise JobError(
                    f"episode {index} of {wanted.scenario} failed {TRIES} times "
                    f"({str(error).splitlines()[-1]}); the same command begins anew"
                ) from None
            waiting.append(index)
            player = _player()  # the old one may hold an engine in an unknown state
        idle.append(player)
        if progress is not None:
            progress(len(rows), wanted.episodes)
    return [rows[index] for index in range(wanted.episodes)]


class EpisodePlayer:
    """Plays one episode at a time, each in an engine of its own, so that none depends on the one before."""

    def play(self, wanted: Collection, index: int) -> Row:
        """Writes the episode's clip, whole or not at all; returns its row of the manifest."""
        from avtok.mux import write_clip

        vizdoom.check_vizdoom(wanted.scenario)  # of this machine
        seed = clip_seed(wanted.seed, index)
        episode = vizdoom.play_episode(wanted.scenario, seed=seed, num_tics=wanted.num_tics)
        clip = Path(wanted.out) / clip_name(index)
        part = clip.with_suffix(".part")
        write_clip(
            part,
            episode.video_THWC,
            episode.audio_N,
            fps=vizdoom.TICS_PER_S,
            sample_rate=vizdoom.SAMPLE_RATE,
        )
        part.replace(clip)
        return {
            "video": clip.name,
            "caption": vizdoom.CAPTIONS[wanted.scenario],
            "actions": episode.actions_TA.tolist(),
            "scenario": wanted.scenario,
            "seed": seed,
        }


def _player() -> Any:
    # A player that dies is not restarted by Ray: its episode is counted here, and goes to a new one.
    return ray.remote(num_cpus=1, max_restarts=0)(EpisodePlayer).remote()
