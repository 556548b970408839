"""Gymnasium environments: world `pusher` as its simulator plays it, or as a model imagines it.

Importing this package registers `worldmodel/pusher`; `gymnasium.make("worldmodel.envs:worldmodel/pusher")`
does both at once. Gymnasium has no plugins since 1.0, so that it cannot find environments by itself.
"""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

PUSHER = "worldmodel/pusher"
MAX_EPISODE_STEPS = 32  # chunks of 4 frames at 16 frames/s: 8 s

if PUSHER not in registry:
    register(
        id=PUSHER,
        entry_point="worldmodel.envs.pusher_env:PusherEnv",
        vector_entry_point="worldmodel.envs.vector_env:PusherVectorEnv",
        max_episode_steps=MAX_EPISODE_STEPS,
    )
