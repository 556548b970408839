"""A model's answers to prompts that no recipe trains on, checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from avtok.load import load_codec
from ray_jobs.errors import UserError
from worldmodel.checks.of_prompts import from_prompts
from worldmodel.checks.prompt_suite import WORLDS, run_prompt_checks
from worldmodel.config import RunConfig
from worldmodel.export import codecs_of, load_model

FIRST_SEED = 3_000_000_000  # no recipe trains on these


def check_prompts_of(
    folder: Path, *, clips: int, world: str | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Any], RunConfig]:
    """What `run_prompt_checks` returns of as many episodes of `world` (default: the model's name), and the
    model's config. UserError for what cannot be checked."""
    model, cfg, _ = load_model(folder)
    world = world or cfg.name
    if world not in WORLDS:
        raise UserError(f"--world {world}: prompts of {' and '.join(WORLDS)} can be checked; name one")
    if clips < 2:
        raise UserError(f"--clips {clips}: another prompt is what each is compared with; make at least 2")
    if world == "talker" and not cfg.model.speech_bytes:
        raise UserError(f"{cfg.name}: does not speak (model.speech_bytes is 0); use --world bounce")
    if world == "talker" and "audio" not in cfg.made:
        raise UserError(f"{cfg.name}: makes no sound (objective.picture_alone is 1); use --world bounce")
    codecs: list[Any] = [load_codec(name) for name in codecs_of(folder, cfg)]
    seeds = range(FIRST_SEED, FIRST_SEED + clips)
    try:
        prompted = from_prompts(model, cfg, *codecs, world=world, seeds=seeds, progress=progress)
        found = run_prompt_checks(prompted, world=world, fps=cfg.data.fps, sample_rate=cfg.data.sample_rate)
    except ImportError as error:  # espeak-ng or the recogniser
        raise UserError(str(error)) from None
    return found, cfg
