"""What an agent saw and heard: a frame a step with the action that led to it, and the sound below."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# S steps, C frames of a chunk, N samples, H W pixels, 2 is x (right) and y (down).

COLUMNS, COLUMN_IN, SOUND_IN = 12, 1.1, 0.5
TOLD, LINE = "#7df9ff", "#2f6fde"
ARROW_S = 0.25  # an arrow is as long as the pusher would get in this time


@dataclass(frozen=True, eq=False)
class Played:
    """One episode: after each of S steps its chunk, the action that led there, and the state."""

    title: str
    video_SCHWC: np.ndarray
    audio_SN: np.ndarray
    actions_SC2: np.ndarray
    state_SV: np.ndarray


def write_env_picture(out: Path, episodes: list[Played]) -> None:
    """A band an episode. The arrow starts at the pusher and shows the last action of the step."""
    columns = min(COLUMNS, len(episodes[0].video_SCHWC))
    figure = Figure(figsize=(COLUMN_IN * columns, len(episodes) * (COLUMN_IN + SOUND_IN + 0.3)))
    rows = figure.add_gridspec(
        2 * len(episodes),
        columns,
        height_ratios=[COLUMN_IN, SOUND_IN] * len(episodes),
        wspace=0.03,
        hspace=0.1,
    )
    for number, episode in enumerate(episodes):
        for column in range(columns):
            axes = figure.add_subplot(rows[2 * number, column])
            _draw_frame(axes, episode, column)
            if column == 0:
                axes.set_title(episode.title, loc="left", fontsize=9)
        sound = figure.add_subplot(rows[2 * number + 1, :])
        audio_N = episode.audio_SN[:columns].reshape(-1)
        sound.plot(np.arange(len(audio_N)), audio_N, color=LINE, linewidth=0.5)
        sound.set_xlim(0, len(audio_N))
        sound.set_ylim(-1, 1)
        sound.axis("off")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, bbox_inches="tight")


def _draw_frame(axes: Axes, episode: Played, step: int) -> None:
    frame_HWC = episode.video_SCHWC[step, -1]
    x, y = episode.state_SV[step, :2] * frame_HWC.shape[1]
    way_x, way_y = episode.actions_SC2[step, -1] * ARROW_S * frame_HWC.shape[1]
    axes.imshow(frame_HWC, extent=(0, frame_HWC.shape[1], frame_HWC.shape[0], 0), interpolation="nearest")
    axes.arrow(x, y, way_x, way_y, color=TOLD, width=0.6, head_width=4, length_includes_head=True)
    axes.set(xlim=(0, frame_HWC.shape[1]), ylim=(frame_HWC.shape[0], 0))  # an arrow would widen them
    axes.set_axis_off()
