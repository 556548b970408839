"""`worldmodel check-prompts`: what a model makes of prompts, beside its codec and another prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ray_jobs.cli_output import Json, answer, short
from ray_jobs.errors import UserError
from ray_jobs.models import find_model

FIRST_SEED = 3_000_000_000  # no recipe trains on these


def check_prompts(
    model: Annotated[str, typer.Argument(help="shipped name, exported folder or run")],
    world: Annotated[
        str | None, typer.Option(help="whose prompts: bounce or talker; default: the model's name")
    ] = None,
    clips: Annotated[int, typer.Option(help="clips to make, one a prompt")] = 64,
    out: Annotated[Path, typer.Option(help="where to write")] = Path("checks.json"),
    as_json: Json = False,
) -> None:
    """Is what prompts say to be seen and heard? With captions and sentences that no recipe trains on."""
    folder = find_model(model)
    from avtok.load import load_codec
    from ray_jobs.progress import ProgressDisplay
    from worldmodel.checks.of_prompts import from_prompts
    from worldmodel.checks.prompt_suite import WORLDS, run_prompt_checks
    from worldmodel.export import codecs_of, load_model

    loaded, cfg, _ = load_model(folder)
    world = world or cfg.name
    if world not in WORLDS:
        raise UserError(f"--world {world}: prompts of {' and '.join(WORLDS)} can be checked; name one")
    if clips < 2:
        raise UserError(f"--clips {clips}: another prompt is what each is compared with; make at least 2")
    if world == "talker" and not cfg.model.speech_bytes:
        raise UserError(f"{model}: does not speak (model.speech_bytes is 0); use --world bounce")
    codecs: list[Any] = [load_codec(name) for name in codecs_of(folder, cfg)]
    seeds = range(FIRST_SEED, FIRST_SEED + clips)
    try:
        with ProgressDisplay() as display:
            prompted = from_prompts(
                loaded,
                cfg,
                *codecs,
                world=world,
                seeds=seeds,
                progress=lambda done, total: display("generate", {"done": done, "total": total}),
            )
        found = run_prompt_checks(prompted, world=world, fps=cfg.data.fps, sample_rate=cfg.data.sample_rate)
    except ImportError as error:  # espeak-ng or the recogniser
        raise UserError(str(error)) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1, allow_nan=False), "utf-8")
    answer(found, as_json, "\n".join(_lines(found["checks"])))


def _lines(checks: dict[str, Any]) -> list[str]:
    lines = []
    if words := checks.get("word_error_rate"):
        other = words["baselines"]["another_sentence"]
        lines.append(
            f"word error rate: {short(words['value'])} (codec alone {short(words['floor'])}, "
            f"another sentence {short(other)})"
        )
    if lips := checks.get("lip_offset"):
        lines.append(
            f"lip offset: {short(lips['value'])} ms; fit {short(lips['fit'])} (true clips "
            f"{short(lips['fit_of_truth'])}, another voice {short(lips['fit_of_another_voice'])})"
        )
    for name, factor in checks.get("prompt_following", {}).get("factors", {}).items():
        lines.append(
            f"{name}: {short(factor['accuracy'])} ({short(factor['ci_low'])} to {short(factor['ci_high'])}; "
            f"chance {short(factor['chance'])}, codec alone {short(factor['codec'])})"
        )
    return lines
