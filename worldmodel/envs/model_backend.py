"""Environments as a model imagines them: a real beginning, then chunk by chunk under the agent's actions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worldmodel.envs.interface import WORLD, Interface, Seen
from worldmodel.envs.seen_state import SeenState
from worldmodel.pipeline import WorldModelPipeline
from worldmodel.session import RolloutSessions
from worldmodel.worlds.bounce import simulate, within_limit
from worldmodel.worlds.clips import WorldClips, encode_episode
from worldmodel.worlds.live import LiveWorld

# R rows, B sessions of a group, C frames of a chunk, P frames of the beginning, K chunks, N samples.

SOUND_CONTEXT_S = 0.75  # of latents before a chunk, so that its sound equals that of the whole clip, decoded


@dataclass
class _Group:
    """Rows that began together, and therefore step as one batch."""

    rows: list[int]
    sessions: RolloutSessions


@dataclass
class _Row:
    """What a row is known by besides its pictures."""

    seed: int
    caption: str
    state: SeenState
    twin: LiveWorld | None


class ModelBackend:
    def __init__(
        self, pipe: WorldModelPipeline, interface: Interface, *, twin: bool = False, device: str = "cpu"
    ) -> None:
        self.pipe, self.interface, self.twin, self.device = pipe, interface, twin, device
        pipe.model.to(device)
        self.rollout = pipe.cfg.rollout
        self._groups: list[_Group] = []
        self._rows: dict[int, _Row] = {}

    @classmethod
    def load(
        cls, model: str, *, split: str, prefix_s: float | None, hold_action: bool, twin: bool, device: str
    ) -> ModelBackend:
        """A shipped name, an exported folder or a run. ValueError for none, or one of another world."""
        pipe = WorldModelPipeline.from_pretrained(model)
        cfg = pipe.cfg
        interface = Interface.of(
            split,
            chunk_frames=cfg.model.chunk_frames,
            prefix_s=cfg.rollout.prefix_s if prefix_s is None else prefix_s,
            hold_action=hold_action,
        )
        world = interface.settings
        needs = (world.fps, world.sample_rate, (world.size_px,) * 2)
        has = (cfg.data.fps, cfg.data.sample_rate, tuple(cfg.data.size))
        if has != needs or cfg.model.action_dim < 2:
            raise ValueError(
                f"{model} has fps, sample rate, size {has} and {cfg.model.action_dim} action values; "
                f"world {WORLD} needs {needs} and 2; give a model that was trained on it"
            )
        if "video" not in cfg.made:
            raise ValueError(f"{model} was trained without pictures, which tell states; give another")
        return cls(pipe, interface, twin=twin, device=device)

    @torch.no_grad()
    def begin(self, rows: list[int], seeds: list[int], warmup_RP2: np.ndarray) -> list[Seen]:
        """Rows leave the group that they were in, and make a new one."""
        self._leave(rows)
        face, cfg = self.interface, self.pipe.cfg
        length_s = face.prefix_frames / face.settings.fps
        # Latents of sound reach to the end of the last frame. What the agent does then is not known yet: the
        # last action goes on.
        told_RP2 = np.concatenate([warmup_RP2, warmup_RP2[:, -1:]], axis=1)
        episodes = [
            simulate(face.settings, seed=seed, duration_s=length_s, actions_T2=told_P2)
            for seed, told_P2 in zip(seeds, told_RP2, strict=True)
        ]
        encoded = [encode_episode(episode, cfg, self.pipe.video, self.pipe.audio) for episode in episodes]
        clips = WorldClips(np.asarray(seeds), *(np.stack(part) for part in zip(*encoded, strict=True)))
        cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"clip_s": length_s})})
        batch = clips.batch(range(len(rows)), cfg, epoch=-1, batch_id=-1).to(self.device)
        sessions = RolloutSessions(self.pipe.model, self.rollout, self.pipe.prediction, cfg.made)
        sessions.reset(batch, prefix_chunks=face.prefix_frames // face.chunk_frames, seeds=seeds)
        for row, episode, warmup_P2 in zip(rows, episodes, warmup_RP2, strict=True):
            truth, twin = episode.truth, None
            if self.twin:
                twin = LiveWorld(face.settings, seed=truth.seed)
                twin.begin(face.prefix_frames, warmup_P2)
            self._rows[row] = _Row(truth.seed, truth.caption, SeenState(face, truth.colors), twin)
        group = _Group(list(rows), sessions)
        self._groups.append(group)
        return self._seen(group)

    @torch.no_grad()
    def step(self, rows: list[int], actions_RC2: np.ndarray) -> list[Seen]:
        """All rows of a group step together: its other rows must be among `rows`."""
        face, found = self.interface, {}
        actions = dict(zip(rows, actions_RC2, strict=True))
        for group in self._groups:
            if not set(group.rows) & actions.keys():
                continue
            told_BCA = torch.zeros(len(group.rows), face.chunk_frames, self.pipe.cfg.model.action_dim)
            for index, row in enumerate(group.rows):
                told_C2 = within_limit(face.settings, actions[row], face.chunk_frames)
                told_BCA[index, :, :2] = torch.from_numpy(told_C2)
                twin = self._rows[row].twin
                if twin is not None:
                    twin.advance(face.chunk_frames, actions[row])
            group.sessions.step(told_BCA.to(self.device))
            found |= zip(group.rows, self._seen(group), strict=True)
        return [found[row] for row in rows]

    def _leave(self, rows: list[int]) -> None:
        for group in self._groups:
            stay = [index for index, row in enumerate(group.rows) if row not in rows]
            if stay and len(stay) < len(group.rows):
                group.sessions.keep(stay)
            group.rows = [group.rows[index] for index in stay]
        self._groups = [group for group in self._groups if group.rows]

    def _seen(self, group: _Group) -> list[Seen]:
        return [
            self._seen_row(self._rows[row], video_CHWC, audio_N)
            for row, video_CHWC, audio_N in zip(group.rows, *self.decode(group.sessions), strict=True)
        ]

    def _seen_row(self, row: _Row, video_CHWC: np.ndarray, audio_N: np.ndarray) -> Seen:
        state, is_seen_K = row.state.of(video_CHWC)
        info: dict[str, Any] = {
            "seed": row.seed,
            "caption": row.caption,
            "state_from": "pictures",
            "seen": is_seen_K,
        }
        if row.twin is not None:
            info["gt_state"] = self.interface.state_values(row.twin.state())
        return Seen(video_CHWC, audio_N, self.interface.state_values(state), info)

    def sessions(self) -> list[RolloutSessions]:
        """One for each time at which rows that still go on began."""
        return [group.sessions for group in self._groups]

    def decode(self, sessions: RolloutSessions) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Pictures of the last chunk of each session, and as much sound up to the moment of its last frame.

        Decoders of sound are late: that last frame's own time is what they still need to hear."""
        face, codec = self.interface, self.pipe
        context = math.ceil(SOUND_CONTEXT_S * face.settings.fps / face.chunk_frames)
        chunks = sessions.chunks[-1 - context :]
        layout = self.pipe.model.layout
        video = layout.of(num_chunks=1, text=False).unpack_video(chunks[-1].video_BVC[:, None])
        pictures = [np.asarray(codec.video.decode(row)) for row in video.cpu()]
        if "audio" not in codec.cfg.made:
            return pictures, [np.zeros(face.samples, np.float32) for _ in pictures]
        audio = layout.of(num_chunks=len(chunks), text=False).unpack_audio(
            torch.stack([chunk.audio_BTC for chunk in chunks], dim=1)
        )
        frame = face.settings.sample_rate // face.settings.fps
        sounds = [np.asarray(codec.audio.decode(row), np.float32)[:-frame] for row in audio.cpu()]
        # Nothing comes before the first frame of a clip.
        whole = [np.concatenate([np.zeros(frame, np.float32), sound])[-face.samples :] for sound in sounds]
        return pictures, whole
