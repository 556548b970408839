"""What a config leaves to be read from elsewhere, filled in before a run takes its name. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray_jobs.errors import UserError
from worldmodel.config import RunConfig


def resolved(cfg: RunConfig) -> RunConfig:
    """With the width of each encoder that features follow. UserError for a folder that is no encoder."""
    if cfg.objective.rep != "repa" or all(target.width for target in cfg.data.targets):
        return cfg
    targets = tuple(
        target.model_copy(update={"width": target.width or encoder_width(target.name, target.encoder)})
        for target in cfg.data.targets
    )
    return cfg.model_copy(update={"data": cfg.data.model_copy(update={"targets": targets})})


def encoder_width(name: str, folder: str) -> int:
    """UserError for a folder that is no encoder, or does not tell."""
    try:
        config = _config_of(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.targets: {name}: {_config_file(folder)}: {type(error).__name__}; give the folder of a "
            "transformers encoder, or for a dry run elsewhere its width"
        ) from None
    width = (config.get("hidden_sizes") or [config.get("hidden_size") or config.get("d_model")])[-1]
    if not isinstance(width, int):
        raise UserError(
            f"data.targets: {name}: {_config_file(folder)} names no hidden_size; set data.targets width"
        )
    return width


def hidden_size(folder: str) -> int | None:
    """Of a transformers model, of its vision part where it has two; None where it is not told, or is one of
    several. OSError or ValueError for a folder that is none."""
    config = _config_of(folder)
    width = config.get("hidden_size") or config.get("d_model")
    return width if isinstance(width, int) and not config.get("hidden_sizes") else None


def _config_of(folder: str) -> dict[str, Any]:
    config: Any = json.loads(_config_file(folder).read_text("utf-8"))
    if not isinstance(config, dict):
        raise ValueError("no mapping")
    return config.get("vision_config") or config


def _config_file(folder: str) -> Path:
    return Path(folder).expanduser() / "config.json"
