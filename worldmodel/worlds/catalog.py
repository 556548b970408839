"""All embedded worlds by name: their settings, and one clip of any of them."""

from __future__ import annotations

import numpy as np

from worldmodel.worlds import settings as bounce_settings
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.settings import BounceSettings
from worldmodel.worlds.talker import TALKER, TalkerSettings, talk
from worldmodel.worlds.truth import Episode

WORLDS = (*bounce_settings.WORLDS, "talker")
WorldSettings = BounceSettings | TalkerSettings


def world_settings(world: str, split: str = "in") -> WorldSettings:
    """ValueError for a name that is not there. Splits other than `in` hold what training never shows."""
    if world == "talker":
        if split not in TALKER:
            raise ValueError(f"world talker has no split {split!r}; there is {', '.join(TALKER)}")
        return TALKER[split]
    if world not in WORLDS:
        raise ValueError(f"no world is named {world!r}; there is {', '.join(WORLDS)}")
    return bounce_settings.world_settings(world, split)


def make_episode(
    settings: WorldSettings, *, seed: int, duration_s: float, actions_T2: np.ndarray | None = None
) -> Episode:
    """One clip. The same arguments give the same bytes. ValueError for actions where nothing takes them."""
    if isinstance(settings, BounceSettings):
        return simulate(settings, seed=seed, duration_s=duration_s, actions_T2=actions_T2)
    if actions_T2 is not None:
        raise ValueError(f"world {settings.world} takes no actions; actions are for world 'pusher'")
    return talk(settings, seed=seed, duration_s=duration_s)
