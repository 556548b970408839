"""The Kubernetes file says what the code and the configs need."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.cluster import fit_problem
from ray_jobs.runtime_env import ROOT, job_runtime_env
from worldmodel.config import RunConfig
from worldmodel.load_config import load_config

RAYJOB = ROOT / "cluster" / "kuberay" / "rayjob-train.yaml"


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return yaml.safe_load(RAYJOB.read_text("utf-8"))


@pytest.fixture(scope="module")
def cfg(job: dict[str, Any]) -> RunConfig:
    """The config that the entrypoint names, as the pods read it, with the entrypoint's settings."""
    program, command, path, *rest = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("worldmodel", "train")
    settings = [value for flag, value in zip(rest[::2], rest[1::2], strict=True) if flag == "--set"]
    assert len(settings) == len(rest) // 2
    return load_config(ROOT / "configs" / Path(path).name, settings)


@pytest.fixture(scope="module")
def groups(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_there_is_a_gpu_pod_for_each_training_worker(groups, cfg):
    group = groups["train-gpu"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == cfg.train.workers
    assert cfg.train.device == "cuda"
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(group["rayStartParams"]["num-gpus"]) == limits["nvidia.com/gpu"] == 1


def test_the_cluster_passes_the_jobs_own_check(job, groups, cfg):
    def total(key: str) -> float:
        return sum(g["replicas"] * int(g["rayStartParams"].get(key, 0)) for g in groups.values())

    have = {"CPU": total("num-cpus"), "GPU": total("num-gpus")}
    assert fit_problem(cfg, have) == ""
    assert "too few CPUs" in fit_problem(cfg, {**have, "CPU": 0.5})


def test_decoders_run_on_cpu_pods_and_nothing_runs_on_the_head(job, groups):
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert groups["train-gpu"]["rayStartParams"]["num-cpus"] == "0"
    decode = groups["decode-cpu"]
    limits = decode["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert decode["rayStartParams"]["num-cpus"] == limits["cpu"]


def test_runs_and_clips_lie_on_a_storage_that_every_pod_mounts(job, cfg):
    claims = set()
    for pod in pods(job):
        (mount,) = pod["containers"][0]["volumeMounts"]
        (volume,) = pod["volumes"]
        assert mount["name"] == volume["name"]
        claims.add(volume["persistentVolumeClaim"]["claimName"])
        for path in (cfg.storage, cfg.data.manifest):
            assert Path(path).is_relative_to(mount["mountPath"])
    assert len(claims) == 1


def test_a_drained_pod_has_time_to_commit_and_ray_hears_of_its_end(job):
    assert job["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    for pod in pods(job):
        container = pod["containers"][0]
        assert "exec $KUBERAY_GEN_RAY_START_CMD" in container["args"][0]
        env = {each["name"]: each["value"] for each in container.get("env", [])}
        drain_s = float(env.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30))
        assert pod["terminationGracePeriodSeconds"] > drain_s


def test_the_job_retries_cleans_up_and_asks_for_a_token(job):
    spec = job["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_job_runs_in_the_environment_that_submit_would_send(job):
    sent = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert sent["env_vars"] == job_runtime_env()["env_vars"]


def test_all_pods_run_one_image_with_the_locked_ray(job):
    assert len({pod["containers"][0]["image"] for pod in pods(job)}) == 1
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    ray = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"ray=={ray}\n" in lock
    assert version("ray") == ray
