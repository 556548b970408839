"""`worldmodel check-prompts`: what a model makes of prompts, beside its codec and another prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ray_jobs.cli_output import Json, answer, short
from ray_jobs.models import find_model


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
    from ray_jobs.check_prompts import check_prompts_of
    from ray_jobs.progress import ProgressDisplay

    with ProgressDisplay() as display:
        found, _ = check_prompts_of(
            folder,
            clips=clips,
            world=world,
            progress=lambda done, total: display("generate", {"done": done, "total": total}),
        )
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
