"""What a served model can do, read from its folder: its sizes, rates and rooms, and prompts in its own words.

Imports without torch.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ray_jobs.errors import UserError
from worldmodel.config import RunConfig
from worldmodel.model_folder import FACTS_FILE, INDEX_FILE
from worldmodel.worlds.catalog import WORLDS, make_episode, world_settings
from worldmodel.worlds.speech import grid_sentence

EXAMPLES = 4
EXAMPLE_SEEDS = 40
EXAMPLE_S = 0.1  # a caption tells how a clip begins
MAX_SECONDS = 60.0  # of a clip
_WORLD = re.compile(r"of world (\w+)")
_PHRASE_END = re.compile(r",? and |, | moving ")


@dataclass(frozen=True)
class ModelFacts:
    """name: as it was asked for. facts: what the model card says."""

    name: str
    cfg: RunConfig
    facts: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, name: str) -> ModelFacts:
        """UserError when the folder is no model of this version."""
        try:
            index = json.loads((folder / INDEX_FILE).read_text("utf-8"))
            cfg = RunConfig.model_validate(index["run"])
        except (ValidationError, KeyError, json.JSONDecodeError) as error:
            raise UserError(f"{folder}: cannot be loaded: {str(error).splitlines()[0]}") from None
        path = folder / FACTS_FILE
        return cls(name, cfg, json.loads(path.read_text("utf-8")) if path.exists() else {})

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT."""
        height, width = self.cfg.data.size
        return f"{width}x{height}"

    @property
    def trained_frames(self) -> int:
        return round(self.cfg.data.clip_s * self.cfg.data.fps)

    @property
    def max_frames(self) -> int:
        chunk = self.cfg.model.chunk_frames
        return max(chunk, round(MAX_SECONDS * self.cfg.data.fps) // chunk * chunk)

    @property
    def world(self) -> str:
        """The embedded world that it was mostly trained on, if its facts or its name say one."""
        said = _WORLD.findall(str(self.facts.get("clips", "")))
        return next((name for name in (*said, self.name) if name in WORLDS), "")

    def abilities(self) -> dict[str, Any]:
        """What GET /v1/models says."""
        data, model, rollout = self.cfg.data, self.cfg.model, self.cfg.rollout
        return {
            "id": self.name,
            "object": "model",
            "owned_by": "worldmodel",
            "size": self.size,
            "fps": data.fps,
            "sample_rate": data.sample_rate,
            "seconds": self.trained_frames / data.fps,
            "max_seconds": self.max_frames / data.fps,
            "chunk_seconds": model.chunk_frames / data.fps,
            "caption_bytes": model.text_tokens,
            "speech_bytes": model.speech_bytes,
            "inputs": [
                f"input_{what}"
                for what, of in (("image", "video"), ("video", "video"), ("audio", "audio"))
                if of in self.cfg.made
            ],
            "steps": rollout.steps,
            "guidance": rollout.guidance_text,
            "speech_guidance": rollout.guidance_speech if model.speech_bytes else None,
            "world": self.world or None,
            "trained_on": self.facts.get("clips"),
            "examples": self.examples(),
        }

    def examples(self) -> list[dict[str, str]]:
        """Prompts as the captions of its world are, as long as the model reads; none of an unknown world."""
        if not self.world:
            return []
        rng = np.random.default_rng(0)
        found: dict[str, dict[str, str]] = {}
        for seed in range(EXAMPLE_SEEDS):
            if self.world == "talker":  # its clips need espeak-ng; their captions do not
                caption = ("a man says", "a woman says")[seed % 2]
                said = grid_sentence(rng)
            else:
                settings = world_settings(self.world)
                caption, said = make_episode(settings, seed=seed, duration_s=EXAMPLE_S).truth.caption, ""
            caption = fitting(caption, self.cfg.model.text_tokens)
            if caption and len(said.encode()) <= self.cfg.model.speech_bytes:
                found.setdefault(caption + said, {"caption": caption, "speech": said})
            if len(found) == EXAMPLES:
                break
        return list(found.values())


def fitting(caption: str, room: int) -> str:
    """As many of its first phrases as fit into `room` bytes."""
    ends = [match.start() for match in _PHRASE_END.finditer(caption)]
    whole = [caption[:end] for end in (*ends, len(caption)) if len(caption[:end].encode()) <= room]
    return whole[-1] if whole else ""
