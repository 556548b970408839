"""A run's config -> KubeRay's RayJob. cluster/kuberay/rayjob-train.yaml is one, and its comments say why."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ray_jobs.cluster import CPUS_PER_DECODER
from ray_jobs.errors import UserError
from ray_jobs.runtime_env import job_runtime_env
from ray_jobs.shared_paths import is_store, shared_media, shared_models
from worldmodel.config import RunConfig

MOUNT = "/mnt/worldmodel"
GRACE_S, DRAIN_S = 180, 150
RETRIES = 3
MIN_CPU_PODS = 2  # of spot machines one may go at any time
HEAD = {"cpu": "2", "memory": "8Gi"}
CPUS_PER_GPU, GB_PER_GPU = 4, 32
GB_PER_CPU = 2
START = 'ulimit -n 65536; eval "exec $KUBERAY_GEN_RAY_START_CMD"'  # Ray as process 1 hears of its pod's end


@dataclass(frozen=True)
class Pods:
    """What the config does not know. cpus: of a pod without GPUs."""

    image: str
    storage_claim: str
    gpus_per_node: int = 1
    cpus: int = 4


def ray_job(cfg: RunConfig, config: Path, settings: Sequence[str], pods: Pods) -> dict[str, Any]:
    """The manifest. UserError when the config says nothing that pods could be chosen by, or does not fit
    them."""
    _check(cfg, pods)
    words = ["worldmodel", "train", f"{MOUNT}/configs/{config.name}"]
    words += [word for setting in settings for word in ("--set", setting)]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": "worldmodel-train",
            "annotations": {"ray.io/overwrite-container-cmd": "true"},
        },
        "spec": {
            "entrypoint": shlex.join(words),
            "runtimeEnvYAML": yaml.safe_dump({"env_vars": job_runtime_env()["env_vars"]}, sort_keys=False),
            "submissionMode": "K8sJobMode",
            "backoffLimit": RETRIES,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token"},
                "headGroupSpec": _head(pods),
                "workerGroupSpecs": _groups(cfg, pods),
            },
        },
    }


def render(job: dict[str, Any]) -> str:
    """YAML without anchors: people copy parts of it."""
    return yaml.safe_dump(json.loads(json.dumps(job)), sort_keys=False, width=118)


def _check(cfg: RunConfig, pods: Pods) -> None:
    problems = []
    media = [] if cfg.data.sources else [("data.manifest", "")]
    for name, path in (("storage", cfg.storage), *media, *shared_media(cfg)):
        if is_store(path) and name != "storage":
            continue
        if is_store(path) or not PurePosixPath(path).is_relative_to(MOUNT):
            problems.append(f"{name}={path}: pods see the claim at {MOUNT}; use --set {name}={MOUNT}/...")
    for name, path in shared_models(cfg):
        if not PurePosixPath(path).is_absolute():
            problems.append(f"{name}={path}: give where pods see it, such as {MOUNT}/models/...")
    if cfg.train.device == "auto":
        problems.append("train.device=auto: pods are asked for by it; use --set train.device=cuda, or cpu")
    if pods.gpus_per_node < 1 or cfg.train.workers % pods.gpus_per_node:
        near = max(n for n in range(1, cfg.train.workers + 1) if not cfg.train.workers % n and n <= 8)
        problems.append(
            f"--gpus-per-node {pods.gpus_per_node}: does not divide train.workers={cfg.train.workers}; "
            f"use {near}"
        )
    if pods.cpus < 1:
        problems.append(f"--cpus {pods.cpus}: a pod needs at least one")
    if problems:
        raise UserError(*problems)


def _head(pods: Pods) -> dict[str, Any]:
    """Cluster state and driver: work would take their memory, so Ray gives it none."""
    ports = [
        {"containerPort": port, "name": name}
        for port, name in ((6379, "gcs-server"), (8265, "dashboard"), (10001, "client"))
    ]
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": _template(pods, "ray-head", HEAD, {"ports": ports}),
    }


def _groups(cfg: RunConfig, pods: Pods) -> list[dict[str, Any]]:
    """CPU pods for decoders, and for training where that runs on CPUs; GPU pods that hold training alone."""
    on_gpu = cfg.train.device == "cuda"
    # fit_problem asks for a CPU a worker on GPUs too: it goes to rollouts when training is over
    needed = cfg.train.workers * (1 + max(1, cfg.data.decode_actors) * CPUS_PER_DECODER)
    resources = {"cpu": str(pods.cpus), "memory": f"{GB_PER_CPU * pods.cpus}Gi"}
    count = max(MIN_CPU_PODS, math.ceil(needed / pods.cpus))
    name = "decode-cpu" if on_gpu else "work-cpu"
    groups = [_group(name, count, {"num-cpus": str(pods.cpus)}, resources, pods)]
    if on_gpu:
        gpus = pods.gpus_per_node
        resources = {
            "cpu": str(CPUS_PER_GPU * gpus),
            "memory": f"{GB_PER_GPU * gpus}Gi",
            "nvidia.com/gpu": gpus,
        }
        start = {"num-cpus": "0", "num-gpus": str(gpus)}  # no decoder comes here
        groups.append(_group("train-gpu", cfg.train.workers // gpus, start, resources, pods))
    return groups


def _group(
    name: str, count: int, start: dict[str, str], resources: dict[str, Any], pods: Pods
) -> dict[str, Any]:
    drain = {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(DRAIN_S)}
    return {
        "groupName": name,
        "replicas": count,
        "minReplicas": count,
        "maxReplicas": count,
        "rayStartParams": start,
        "template": _template(pods, "ray-worker", resources, {"env": [drain]}),
    }


def _template(pods: Pods, name: str, resources: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    container = {
        "name": name,
        "image": pods.image,
        "command": ["/bin/bash", "-lc", "--"],
        "args": [START],
        **more,
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": [{"name": "storage", "mountPath": MOUNT}],
    }
    volume = {"name": "storage", "persistentVolumeClaim": {"claimName": pods.storage_claim}}
    return {
        "spec": {
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": [container],
            "volumes": [volume],
        }
    }
