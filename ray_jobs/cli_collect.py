"""`worldmodel collect`: episodes of a simulator as clips with sound and actions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli_output import Address, Json, answer


def collect(
    simulator: Annotated[str, typer.Argument(help="vizdoom")],
    out: Annotated[Path, typer.Option(help="folder for the clips")],
    episodes: Annotated[int, typer.Option(help="number of clips")] = 64,
    seconds: Annotated[float, typer.Option(help="of each, or less where an episode ends before")] = 4.0,
    scenario: Annotated[str, typer.Option(help="which of the simulator's")] = "basic",
    actors: Annotated[int, typer.Option(help="that play at a time")] = 2,
    seed: int = 0,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Play a simulator: .mp4 clips with sound, actions and a manifest, by Ray actors."""
    from ray_jobs.cluster import connect
    from ray_jobs.collect import Collection, check_collection
    from ray_jobs.collect import collect as play
    from ray_jobs.errors import storage_errors_in_words
    from ray_jobs.progress import ProgressDisplay

    wanted = Collection(scenario, episodes, seconds, seed, str(out.resolve()))
    check_collection(simulator, wanted, actors)
    connect(address)
    with ProgressDisplay() as display, storage_errors_in_words(out):
        manifest = play(
            simulator,
            wanted,
            actors=actors,
            progress=lambda done, total: display("playing episodes", {"done": done, "total": total}),
        )
    answer({"manifest": manifest, "episodes": episodes}, as_json, f"{episodes} episodes: {manifest}")
