"""`worldmodel kuberay`: the training job of a config as a manifest for Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli_output import Json, Set, answer


def kuberay(
    config: Annotated[Path, typer.Argument(help="YAML of the run; pods expect it in configs/ of the claim")],
    image: Annotated[str, typer.Option(help="of all pods")],
    storage_claim: Annotated[
        str, typer.Option(help="ReadWriteMany volume claim with configs, clips and runs")
    ] = "worldmodel-storage",
    gpus_per_node: Annotated[int, typer.Option(help="GPUs, and training workers, of one pod")] = 1,
    cpus: Annotated[int, typer.Option(help="CPUs of a pod without GPUs")] = 4,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Print a KubeRay RayJob that trains this config: worldmodel kuberay CONFIG ... > rayjob.yaml"""
    from ray_jobs.kuberay import Pods, ray_job, render
    from worldmodel.load_config import load_config

    pods = Pods(image, storage_claim, gpus_per_node, cpus)
    job = ray_job(load_config(config, overrides), config, overrides or [], pods)
    answer(job, as_json, render(job).rstrip("\n"))
