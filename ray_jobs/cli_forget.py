"""The `forget` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli_output import Json, answer


def forget(
    manifest: Annotated[str, typer.Argument(help="indexed manifest that holds the clips")],
    ids: Annotated[Path, typer.Option(help="file with an id, address or content hash on each line")],
    runs: Annotated[
        list[Path] | None, typer.Option(help="folder of runs whose plans and caches are searched")
    ] = None,
    cache: Annotated[list[Path] | None, typer.Option(help="further latent caches")] = None,
    as_json: Json = False,
) -> None:
    """Take clips out of every manifest, plan and cache, prove it, and list the models that saw them."""
    from ray_jobs.forget import described
    from ray_jobs.forget import forget as take_out

    given = runs if runs is not None else [path for path in (Path("runs"),) if path.is_dir()]
    report = take_out(manifest, ids=ids, runs=given, caches=cache or [])
    answer(report, as_json, described(report))
