"""`worldmodel submit` and `worldmodel doctor`: jobs on a cluster, and what would stop them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli_output import INTERRUPTED, Address, Json, Set, answer

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # what follows is the job's


def submit(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="train, tokenize, render, rollout, serve or demo")],
    address: Annotated[str, typer.Option(help="dashboard of the cluster, such as http://127.0.0.1:8265")],
    wait: Annotated[bool, typer.Option(help="follow the job to its end")] = True,
    as_json: Json = False,
) -> None:
    """Run a subcommand as a Ray job on a cluster; what follows goes to it as it stands."""
    from ray_jobs.submit import submit as submit_job

    result = submit_job(
        kind,
        context.args,
        address=address,
        wait=wait,
        on_line=lambda line: typer.echo(line, err=True, nl=False),
    )
    answer({"job": result.job_id, "status": result.status}, as_json, f"{result.job_id}: {result.status}")
    if wait and result.status == "RUNNING":  # told to stop following it: no script takes the job for done
        raise typer.Exit(INTERRUPTED)


def doctor(
    config: Annotated[Path | None, typer.Argument(help="YAML of a run to check the machine against")] = None,
    overrides: Set = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Versions, CPUs, memory, storage and codecs: what would stop a job, before it starts."""
    from ray_jobs.doctor import diagnose
    from worldmodel.load_config import load_config

    findings = diagnose(load_config(config, overrides) if config else None, address)
    lines = [
        f"{'ok  ' if f.ok else 'FAIL'} {f.name}: {f.found}{'' if f.ok else f' -> {f.advice}'}"
        for f in findings
    ]
    answer([f.__dict__ for f in findings], as_json, "\n".join(lines))
    if not all(f.ok for f in findings):
        raise typer.Exit(1)
