"""Joins or starts a Ray cluster, and says before a job starts whether it fits."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Mapping

import psutil

from ray_jobs.errors import JobError, UserError
from ray_jobs.interrupt import sigterm_stays_ours, spared_sigterm
from worldmodel.config import RunConfig

# Decoding, rendering and training take turns on a small machine: with one logical CPU per core the stream
# would wait for CPUs that training holds.
LOCAL_CPUS = 8
CPUS_PER_DECODER = 0.5  # of a decode and encode actor
LOCAL_STARTS = 3
OBJECT_STORE_BYTES = 512 << 20  # latents are small; a larger store only costs shared memory
CONNECT_TIMEOUT_S = 5.0
TOKEN_ADVICE = "set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token of the machine that runs the head"
QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # One idle worker per logical CPU would cost a small machine seconds, and none of them fits an actor.
    "RAY_prestart_worker_first_driver": "0",
}


# Each saves the import of Ray Train by one more actor: seconds on a small machine.
ON_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # no node can be taken from under the job


def connect(address: str | None = None, *, num_cpus: int | None = None, commits: bool = False) -> None:
    """Joins the cluster at `address` (or of RAY_ADDRESS, which is set inside a job), else starts a local one.
    Does nothing when connected. UserError when no cluster answers.

    commits: what runs has to be stored when SIGTERM comes to every process here. Ray then takes 4 s more to
    end, for it ends its processes by SIGTERM first.
    """
    os.environ.update({k: os.environ.get(k, v) for k, v in QUIET.items()})
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    import ray

    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    from ray_jobs.runtime_env import runtime_env

    if address:
        _join(address)
        return
    os.environ.update({k: os.environ.get(k, v) for k, v in ON_ONE_MACHINE.items()})
    for _ in range(LOCAL_STARTS):
        try:
            with sigterm_stays_ours(), spared_sigterm(spared=commits):
                ray.init(
                    address="local",  # without it Ray joins whatever cluster was started last on this machine
                    num_cpus=num_cpus or local_cpus(),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=runtime_env(local=True),
                )
        except Exception as error:  # Ray has no class for it
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
        else:
            return
    raise JobError(
        f"Ray did not start on this machine in {LOCAL_STARTS} tries of 30 s: it is busy or short of memory; "
        "end other work and start the same command again"
    )


def _join(address: str) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    from ray_jobs.runtime_env import runtime_env

    if address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address}: jobs are sent there, and nothing else; use `worldmodel submit` with it, "
            "or give the cluster's own address (host:6379, as `ray start` prints it)"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    # Ray itself would try for two minutes and then end the process
    if port.isdigit() and (problem := no_answer(host, int(port))):
        raise UserError(
            f"--address {address}: no Ray cluster answers ({problem}); start one with `ray start --head`"
        )
    try:
        with sigterm_stays_ours():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=runtime_env(local=False),
            )
    except ConnectionError as error:
        raise UserError(
            f"--address {address}: no Ray cluster answers ({str(error).splitlines()[0]})"
        ) from None
    except AuthenticationError:
        raise UserError(
            f"--address {address}: the cluster asks for a token and refused ours; {TOKEN_ADVICE}"
        ) from None
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise UserError(
            f"--address {address}: {' '.join(str(error).split())}; install the same here"
        ) from None


def no_answer(host: str, port: int) -> str:
    """Why nothing listens there; empty when something does."""
    try:
        socket.create_connection((host.strip("[]"), port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def local_cpus() -> int:
    """Logical CPUs of a local cluster."""
    return max(LOCAL_CPUS, psutil.cpu_count() or 1)


def tasks_at_once() -> int:
    """How many tasks that keep a core busy are worth having in flight.

    On this machine alone one for each real core, for Ray counts more CPUs than there are and each task would
    start a process; else as many as fit, and as many again so that none waits for the driver.
    """
    return real_cores() if is_this_machine_alone() else 2 * real_cores()


def encoding_slots(cfg: RunConfig) -> int:
    """Actors that encode at full speed on the whole cluster: one for each core, or for each share of a GPU.
    UserError when GPUs are asked for and there are none."""
    import ray

    cores, gpus = real_cores(), ray.cluster_resources().get("GPU", 0.0)
    if cfg.data.encode_gpus <= 0:
        return cores
    if gpus < cfg.data.encode_gpus:
        raise UserError(no_gpu_to_encode(cfg, gpus))
    return max(1, min(cores, int(gpus / cfg.data.encode_gpus + 1e-6)))


def real_cores() -> int:
    """Cores of the cluster; Ray counts more of them on a machine of its own."""
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    return max(1, min(cpus, psutil.cpu_count() or 1) if is_this_machine_alone() else cpus)


def is_this_machine_alone() -> bool:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return len(nodes) == 1 and nodes[0]["NodeManagerHostname"] == socket.gethostname()


def check_fits(cfg: RunConfig) -> None:
    """UserError when the cluster has too few CPUs or GPUs for the training job and its stream."""
    import ray

    if problem := fit_problem(cfg, ray.cluster_resources()):
        raise UserError(problem)


def no_gpu_to_encode(cfg: RunConfig, gpus: float) -> str:
    return (
        f"data.encode_gpus={cfg.data.encode_gpus:g}, but the cluster has {gpus:g} GPUs; "
        "set data.encode_gpus=0 to encode on CPUs"
    )


def fit_problem(cfg: RunConfig, have: Mapping[str, float]) -> str:
    """Which resource is too small for the training job and its stream, and what to do; empty when none is."""
    actors = max(1, cfg.data.decode_actors)  # 0: as measured, at least one
    per_worker = 1 + actors * CPUS_PER_DECODER
    needed = cfg.train.workers * per_worker
    if have.get("CPU", 0) < needed:
        most = int(have.get("CPU", 0) // per_worker)
        fewer = int((have.get("CPU", 0) / cfg.train.workers - 1) / CPUS_PER_DECODER)
        if fewer >= 1:
            hint = f"use data.decode_actors={fewer}"
        else:
            hint = f"use train.workers={most}" if most else "start Ray with more CPUs (ray start --num-cpus)"
        return (
            f"too few CPUs: train.workers={cfg.train.workers} with "
            f"data.decode_actors={cfg.data.decode_actors} needs {needed:g}, "
            f"the cluster has {have.get('CPU', 0):g}; {hint}"
        )
    gpus, share = have.get("GPU", 0.0), cfg.data.encode_gpus
    if share > 0 and gpus <= 0:
        return no_gpu_to_encode(cfg, gpus)
    trains_on_gpus = cfg.train.device == "cuda" or (cfg.train.device == "auto" and gpus > 0)
    needed_gpus = cfg.train.workers * (trains_on_gpus + actors * share)
    if share > 0 and gpus < needed_gpus:
        return (
            f"too few GPUs: train.workers={cfg.train.workers} and {cfg.train.workers * actors} decode actors "
            f"with data.encode_gpus={share:g} need {needed_gpus:g}, the cluster has {gpus:g}; set "
            "data.encode_gpus=0, or fill data.cache first by `worldmodel tokenize`, which has all GPUs"
        )
    if trains_on_gpus and gpus < cfg.train.workers:
        fewer = f"train.workers={int(gpus)} or " if gpus >= 1 else ""
        return (
            f"too few GPUs: train.workers={cfg.train.workers}, the cluster has {gpus:g}; "
            f"use {fewer}train.device=cpu"
        )
    if cfg.train.compile == "always" and not trains_on_gpus:
        return "train.compile=always needs GPUs: nothing is compiled on CPUs; set train.compile=auto"
    return ""
