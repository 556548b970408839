"""ViZDoom (MIT; levels and art of Freedoom): episodes seen, heard and played. Only this file imports vizdoom.

The engine runs without a window, waits for every action, and the same seed and actions give the same pixels
and samples. Every tic is a frame: 35 a second, each with exactly 630 samples at 22.05 kHz.
"""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from ray_jobs.errors import UserError

# T tics, which are frames; H W pixels; N samples; A buttons.

TICS_PER_S = 35
SAMPLE_RATE = 22050
SIZE = (120, 160)  # height and width
OPENAL = "libopenal.so.1"
SHORTEST_HOLD, LONGEST_HOLD = 4, 14  # tics for which the player keeps to one choice of buttons
PRESSED, FIRED = 0.35, 0.25  # how often a button is chosen, and the trigger
DELTA_SPREAD = 3.0  # degrees or units a tic of the buttons that take numbers
CAPTIONS = {
    "basic": "a first-person view of a room with a monster at its far wall",
    "deadly_corridor": "a first-person view of a corridor with armed men on both sides",
    "defend_the_center": "a first-person view of a round arena, monsters closing in",
    "defend_the_line": "a first-person view of a hall, monsters coming from its far wall",
    "health_gathering": "a first-person view of a room with an acid floor and medical kits",
    "health_gathering_supreme": "a first-person view of a maze with an acid floor and medical kits",
    "my_way_home": "a first-person view of rooms and corridors",
    "predict_position": "a first-person view of a room with a monster that walks, and rockets",
    "take_cover": "a first-person view of a room with monsters that throw fire",
}


@dataclass(frozen=True, eq=False)
class DoomEpisode:
    """video_THWC: uint8 RGB. audio_N: float32 mono, 630 samples a tic, heard while the frame of that tic is
    shown. actions_TA[i] takes frame i to frame i + 1, one column per button: 1 is pressed, or degrees."""

    video_THWC: np.ndarray
    audio_N: np.ndarray
    actions_TA: np.ndarray
    buttons: tuple[str, ...]


def check_vizdoom(scenario: str) -> None:
    """UserError for what keeps a scenario from being played in this process."""
    if scenario not in CAPTIONS:
        raise UserError(f"--scenario {scenario!r}: not known; there is {', '.join(CAPTIONS)}")
    if find_spec("vizdoom") is None:
        raise UserError("vizdoom is not installed: pip install 'worldmodel[simulators]'")
    if sys.platform == "linux":
        try:
            ctypes.CDLL(OPENAL)
        except OSError:
            raise UserError(
                "vizdoom makes sound with OpenAL, which is not here: apt install libopenal1"
            ) from None


def is_playable() -> bool:
    """Whether this machine has the engine and what it needs."""
    try:
        check_vizdoom(next(iter(CAPTIONS)))
    except UserError:
        return False
    return True


def buttons_of(scenario: str) -> tuple[str, ...]:
    """The names of a scenario's buttons, in the order of its actions."""
    return tuple(button.name for button in _configured(scenario).get_available_buttons())


def play_episode(
    scenario: str, *, seed: int, num_tics: int, actions_TA: np.ndarray | None = None
) -> DoomEpisode:
    """At most num_tics of one episode, fewer where the scenario ends before.

    actions_TA: what to press, else a random walk of the seed's own. The same arguments give the same episode.
    """
    game = _configured(scenario)
    game.set_seed(seed)
    game.set_episode_timeout(game.get_episode_start_time() + num_tics + 1)
    buttons = tuple(button.name for button in game.get_available_buttons())
    if actions_TA is None:
        actions_TA = random_walk(np.random.default_rng(seed), buttons, num_tics)
    pictures, sounds = [], []
    with _running(game):
        for action_A in actions_TA:
            if game.is_episode_finished():
                break
            state = game.get_state()
            pictures.append(state.screen_buffer.copy())
            sounds.append(state.audio_buffer.astype(np.float32).mean(1) / 32768)
            game.make_action(action_A.tolist())
    return DoomEpisode(np.stack(pictures), np.concatenate(sounds), actions_TA[: len(pictures)], buttons)


def random_walk(rng: np.random.Generator, buttons: Sequence[str], num_tics: int) -> np.ndarray:
    """[T, A]: buttons chosen anew every 4 to 14 tics, each pressed or not, and held in between."""
    is_delta_A = np.array([button.endswith("_DELTA") for button in buttons])
    pressed_A = np.array([FIRED if button == "ATTACK" else PRESSED for button in buttons])
    actions_TA = np.zeros((num_tics, len(buttons)))
    tic = 0
    while tic < num_tics:
        hold = int(rng.integers(SHORTEST_HOLD, LONGEST_HOLD + 1))
        chosen_A = (rng.random(len(buttons)) < pressed_A).astype(float)
        turned_A = rng.normal(0, DELTA_SPREAD, len(buttons)).round(2)
        actions_TA[tic : tic + hold] = np.where(is_delta_A, turned_A, chosen_A)
        tic += hold
    return actions_TA


@contextmanager
def _running(game: Any) -> Iterator[None]:
    """The engine, a process of its own, in a folder of its own: it writes settings where it is started.

    It waits for ever when this process is killed, so a shell that reads a pipe of ours ends it then.
    """
    before = {child.pid for child in psutil.Process().children()}
    with TemporaryDirectory(prefix="vizdoom-") as folder, chdir(folder):
        game.init()
        engine = next(child for child in psutil.Process().children() if child.pid not in before)
        command = engine.cmdline()
        shared = "/dev/shm/ViZDoom*" + command[command.index("+viz_instance_id") + 1]
        cleans = f"kill -9 {engine.pid}; rm -rf {shlex.quote(folder)} {shared}"
        # In the background, and so nobody's child: Ray ends the children of a worker that dies.
        script = f'exec 3<&0; {{ read -r word; [ -n "$word" ] || {{ {cleans}; }}; }} <&3 &'
        guard = subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)
        try:
            yield
        finally:
            guard.communicate(b"done\n")
            game.close()


def _configured(scenario: str) -> Any:
    import vizdoom

    game = vizdoom.DoomGame()
    game.load_config(str(Path(vizdoom.scenarios_path) / f"{scenario}.cfg"))
    game.set_window_visible(False)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_audio_buffer_enabled(True)
    game.set_audio_sampling_rate(vizdoom.SamplingRate.SR_22050)
    game.set_audio_buffer_size(1)  # the sound of the last tic
    game.add_game_args("+snd_efx 0")  # with effects, OpenAL 1.19 stops the engine
    return game
