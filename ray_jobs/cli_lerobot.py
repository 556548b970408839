"""`worldmodel export-lerobot`: clips with actions as a LeRobot data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli_output import Json, answer


def export_lerobot(
    source: Annotated[str, typer.Argument(help="folder of render or collect, or a manifest with actions")],
    out: Annotated[Path, typer.Option(help="folder to write; empty or not there yet")],
    fps: Annotated[int | None, typer.Option(help="frames a second; default: those of the clips")] = None,
    as_json: Json = False,
) -> None:
    """Clips with actions -> a LeRobot v3.0 data set, picture and sound."""
    from ray_jobs.errors import storage_errors_in_words
    from ray_jobs.lerobot_export import export_episodes
    from ray_jobs.progress import ProgressDisplay

    with ProgressDisplay() as display, storage_errors_in_words(out):
        result = export_episodes(
            source,
            out,
            fps=fps,
            progress=lambda stage, done, total: display(stage, {"done": done, "total": total}),
        )
    lines = [f"{result['episodes']} episodes, {result['frames']} frames: {out}"]
    lines += [f"left out: {row['uri']}: {row['reason']}" for row in result["left_out"]]
    answer(result, as_json, "\n".join(lines))
