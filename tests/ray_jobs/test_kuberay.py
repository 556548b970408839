"""A config becomes a RayJob that KubeRay would take; images are as `make setup` makes an environment."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.cluster import fit_problem
from ray_jobs.kuberay import Pods, ray_job, render
from ray_jobs.runtime_env import ROOT
from tests.ray_jobs.test_cli_errors import complaint, worldmodel
from worldmodel.load_config import load_config

EXAMPLE = ROOT / "cluster" / "kuberay" / "rayjob-train.yaml"
PAGE = ROOT / "docs" / "infrastructure.md"
DOCKER = sorted((ROOT / "cluster" / "docker").glob("Dockerfile.*"))
PATHS = ["storage=/mnt/worldmodel/runs", "data.manifest=/mnt/worldmodel/clips"]
STRINGS = {"*": str}
# Of KubeRay's API ray.io/v1, the fields that are used; Kubernetes refuses others.
SCHEMA: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations": STRINGS},
    "spec": {
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "submissionMode": str,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": str},
            "headGroupSpec": {"rayStartParams": STRINGS, "template": dict},
            "workerGroupSpecs": [
                {
                    **{"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int},
                    **{"rayStartParams": STRINGS, "template": dict},
                }
            ],
        },
    },
}


def wrong(found: Any, schema: Any, where: str = "") -> list[str]:
    """Places where a document is not of the schema."""
    if isinstance(schema, type):
        return [] if type(found) is schema else [f"{where}: {found!r}"]
    if isinstance(schema, list):
        return [line for i, each in enumerate(found) for line in wrong(each, schema[0], f"{where}[{i}]")]
    if "*" in schema:
        return [line for key, each in found.items() for line in wrong(each, schema["*"], f"{where}.{key}")]
    lines = [f"{where}: {key}" for key in found.keys() ^ schema.keys()]
    return lines + [
        line
        for key in found.keys() & schema.keys()
        for line in wrong(found[key], schema[key], f"{where}.{key}")
    ]


def example() -> dict[str, Any]:
    return yaml.safe_load(EXAMPLE.read_text("utf-8"))


def job_of(config: str, *settings: str, gpus: int = 1) -> dict[str, Any]:
    path, given = ROOT / "configs" / config, [*PATHS, *settings]
    return ray_job(load_config(path, given), path, given, Pods("image:1", "claim", gpus))


def groups(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def test_the_example_is_what_the_command_of_the_page_prints():
    (line,) = re.findall(r"^worldmodel (kuberay .*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    done = worldmodel(*shlex.split(line), cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    printed, shipped = yaml.safe_load(done.stdout), example()
    for job in (printed, shipped):  # YAML within YAML: only its quotes differ
        job["spec"]["runtimeEnvYAML"] = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert printed == shipped


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("av_*.yaml")))
def test_every_size_becomes_a_job_of_kuberays_form_that_it_fits(config: str):
    cfg = load_config(ROOT / "configs" / config, PATHS)
    gpus = min(8, cfg.train.workers)
    job = yaml.safe_load(render(job_of(config, gpus=gpus)))
    assert wrong(job, SCHEMA) == []
    have = {"CPU": 0.0, "GPU": 0.0}
    for group in groups(job).values():
        have["CPU"] += group["replicas"] * int(group["rayStartParams"]["num-cpus"])
        have["GPU"] += group["replicas"] * int(group["rayStartParams"].get("num-gpus", 0))
    assert fit_problem(cfg, have) == ""
    assert have["GPU"] == cfg.train.workers
    limits = groups(job)["train-gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == gpus


def test_the_form_of_a_job_is_really_looked_at():
    assert wrong(example(), SCHEMA) == []
    for place, value in (("backoffLimit", "3"), ("shutDownAfterJobFinishes", True), ("entrypoint", None)):
        job = example()
        job["spec"][place] = value
        assert wrong(job, SCHEMA)
    job = example()
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # KubeRay wants a string
    assert wrong(job, SCHEMA)


def test_training_on_cpus_asks_for_no_gpu():
    settings = ["train.workers=3", "data.decode_actors=5"]  # 10.5 CPUs: two pods of four are too few
    job = job_of("debug_cpu.yaml", *settings)
    (group,) = groups(job).values()
    assert group["groupName"] == "work-cpu"
    assert "nvidia" not in render(job)
    cfg = load_config(ROOT / "configs" / "debug_cpu.yaml", [*PATHS, *settings])
    assert fit_problem(cfg, {"CPU": group["replicas"] * int(group["rayStartParams"]["num-cpus"])}) == ""


def test_what_pods_cannot_be_chosen_by_is_refused_in_words():
    config = ROOT / "configs" / "demo.yaml"
    given = ["--image", "image:1", "--gpus-per-node", "3"]
    media = ["--set", "data.manifest=/mnt/worldmodel/clips"]
    own = ["--set", "data.cache=runs/cache", "--set", "train.init=runs/x"]
    lines = complaint("kuberay", config, *given, *media, *own)
    assert lines.pop(1).startswith("data.cache=runs/cache: pods see the claim at /mnt/worldmodel")
    assert lines.pop(1).startswith("train.init=runs/x: give where pods see it")
    lines = complaint("kuberay", config, *given, *media)
    assert "storage=runs: pods see the claim at /mnt/worldmodel" in lines[0]
    assert "train.device=auto" in lines[1]
    assert "--gpus-per-node 3: does not divide train.workers=2; use 2" in lines[2]
    assert len(lines) == 3
    assert any("Missing argument 'config'" in line for line in complaint("kuberay", "--image", "image:1"))
    assert any("Missing option '--image'" in line for line in complaint("kuberay", config))


@pytest.mark.parametrize("file", DOCKER, ids=lambda path: path.suffix[1:])
def test_an_image_is_made_by_make_setup_from_files_that_are_there(file: Path):
    text = file.read_text("utf-8")
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert bases == ["python:3.11.13-slim-bookworm"] * 2
    pinned = re.search(r"--python-version (\S+)", (ROOT / "Makefile").read_text("utf-8"))
    assert pinned is not None
    assert bases[0].startswith(f"python:{pinned[1]}.")
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    for source in copied:
        assert (ROOT / source).exists()
        assert source not in ignored
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for needed in ("requirements.lock", "pyproject.toml", "Makefile", "worldmodel", "ray_jobs", "tokenizers"):
        assert needed in copied
    for name in ("readme", "license-files"):  # hatchling reads them
        (value,) = re.findall(rf'^{name} = \[?"(\S+?)"', project, re.MULTILINE)
        assert value in copied
    assert "RUN make setup PYTHON=python3\n" in text
    assert "pip" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)  # all packages come by the Makefile
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["worldmodel"]
    assert "/opt/worldmodel/.venv/bin" in text
