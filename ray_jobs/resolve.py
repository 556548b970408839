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
        width = told_width(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.targets: {name}: {_config_file(folder)}: {type(error).__name__}; give the folder of a "
            "transformers encoder, or for a dry run elsewhere its width"
        ) from None
    if width is None:
        raise UserError(
            f"data.targets: {name}: {_config_file(folder)} names no hidden_size; set data.targets width"
        )
    return width


def told_width(folder: str) -> int | None:
    """hidden_size of a transformers model, of its vision part where it has two; None where it is not told.
    OSError or ValueError for a folder that is none."""
    config: dict[str, Any] = json.loads(_config_file(folder).read_text("utf-8"))
    config = config.get("vision_config", config)
    width = (config.get("hidden_sizes") or [config.get("hidden_size") or config.get("d_model")])[-1]
    return width if isinstance(width, int) else None


def _config_file(folder: str) -> Path:
    return Path(folder).expanduser() / "config.json"
