"""Environments as the simulator plays them: exact, and the bound for every model."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldmodel.envs.interface import Interface, Seen
from worldmodel.worlds.live import LiveWorld, Piece

# R rows, C frames of a chunk, P frames of the beginning.


class SimBackend:
    """One live world a row."""

    def __init__(self, interface: Interface, *, twin: bool = False) -> None:
        self.interface, self.twin = interface, twin
        self._worlds: dict[int, LiveWorld] = {}

    def begin(self, rows: list[int], seeds: list[int], warmup_RP2: np.ndarray) -> list[Seen]:
        found = []
        for row, seed, warmup_P2 in zip(rows, seeds, warmup_RP2, strict=True):
            world = self._worlds[row] = LiveWorld(self.interface.settings, seed=seed)
            piece = world.begin(self.interface.prefix_frames, warmup_P2)
            found.append(self._seen(world, piece))
        return found

    def step(self, rows: list[int], actions_RC2: np.ndarray) -> list[Seen]:
        worlds = [self._worlds[row] for row in rows]
        return [
            self._seen(world, world.advance(self.interface.chunk_frames, actions_C2))
            for world, actions_C2 in zip(worlds, actions_RC2, strict=True)
        ]

    def _seen(self, world: LiveWorld, piece: Piece) -> Seen:
        """The last chunk of a piece."""
        face = self.interface
        state_S = face.state_values(world.state())
        info: dict[str, Any] = {
            "seed": world.seed,
            "caption": world.caption,
            "state_from": "simulator",
            "seen": np.ones(1 + face.settings.bodies[1], bool),
        }
        if self.twin:
            info["gt_state"] = state_S.copy()
        return Seen(piece.video_THWC[-face.chunk_frames :], piece.audio_N[-face.samples :], state_S, info)
