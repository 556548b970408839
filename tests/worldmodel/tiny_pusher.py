"""A small random model of world `pusher`, exported: all of its parts are real, but it has learned nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from avtok.load import codec_spec
from tests.worldmodel.synthetic import open_model
from worldmodel.config import RunConfig
from worldmodel.export import save_model
from worldmodel.layout import Layout


def write_tiny_pusher(
    folder: Path, *, objective: Mapping[str, object] = MappingProxyType({}), **rollout: object
) -> RunConfig:
    """Chunks of 4 frames at 64x64, with the shipped codecs; its beginning is half a second."""
    cfg = RunConfig.model_validate(
        {
            "name": "tiny",
            "data": {"clip_s": 1.0},
            "model": {
                "depth": 2,
                "width": 32,
                "head_dim": 16,
                "text_tokens": 16,
                "text_patch": 8,
                "audio_patch": 4,
                "window_chunks": 4,
                "action_modulation": True,
            },
            "objective": {**objective},
            "rollout": {"steps": 2, "prefix_s": 0.5, **rollout},
        }
    )
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    save_model(folder, open_model(cfg, layout).state_dict(), layout, cfg, {})
    return cfg
