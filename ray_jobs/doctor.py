"""Looks before a job starts for what would stop it: versions, codecs, CPUs, memory, storage, the cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import metadata, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ray_jobs.cluster import OBJECT_STORE_BYTES, fit_problem, local_cpus
from ray_jobs.cluster_facts import PACKAGES, ClusterFacts, ask_cluster, versions
from ray_jobs.errors import UserError
from ray_jobs.runtime_env import ROOT, is_checkout
from worldmodel.config import RunConfig

NOT_FOR_USERS = ("dev",)
GB = 1 << 30
DISK_BYTES = 2 * GB  # two checkpoints of a small model, clips and a report
# A training worker of the demo was seen to hold 0.9 GB (RSS); what Ray itself takes is a rough allowance.
PROCESS_BYTES, RAY_BYTES = int(0.9 * GB), int(1.5 * GB)
PROBE_S = 180
SETUP = "run `make setup`, which installs requirements.lock"
TORCH_PROBE = """
import json, torch, torchaudio
print(json.dumps([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]))
"""
CODEC_PROBE = """
import av
for name in ("h264", "aac"):
    av.codec.Codec(name, "w"), av.codec.Codec(name, "r")
print("[]")
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. advice is empty when it is ok."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def diagnose(cfg: RunConfig | None, address: str | None) -> list[Finding]:
    """All that can be known before the job: of the cluster at this address (its dashboard), else of this
    machine. Whatever is not ok would stop a job."""
    if address is not None:  # a laptop that only submits needs no torch
        return _diagnose_cluster(cfg, address)
    have = versions(each.name for each in requirements())
    torch_works, gpus = probe("torch with torchaudio", TORCH_PROBE, advice=f"they do not fit; {SETUP} by uv")
    codecs, _ = probe("h264 and aac in PyAV", CODEC_PROBE, advice="install PyAV's own wheel: pip install av")
    return [
        *check_versions(have),
        torch_works,
        codecs,
        *check_extras(have),
        Finding("GPUs", True, ", ".join(gpus) or "none: training runs on CPUs"),
        check_fit({"CPU": local_cpus(), "GPU": len(gpus)}, cfg),
        *check_decoding(cfg, len(gpus)),
        check_memory(cfg),
        *check_shared_memory(),
        check_storage(cfg),
    ]


def requirements() -> list[Requirement]:
    """The floors of pyproject.toml: of the checkout when this is one, else as installed."""
    if not is_checkout():
        return [Requirement(line) for line in requires("worldmodel") or []]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, packages in project["optional-dependencies"].items():
        lines += [f"{line} {'and' if ';' in line else ';'} extra == '{extra}'" for line in packages]
    return [Requirement(line) for line in lines]


def check_versions(have: Mapping[str, str], *, where: str = "") -> list[Finding]:
    """Python and each named package on a line, the others together."""
    findings = [_check_python(have["python"], where)]
    others_wrong, others = [], 0
    for each in requirements():
        if each.marker is not None or each.name not in have:
            continue
        found = have[each.name]
        ok = bool(found) and each.specifier.contains(found, prereleases=True)
        line = f"{found or 'not installed'} (needs {each.specifier or 'any'})"
        if each.name in PACKAGES:
            findings.append(Finding(f"{each.name}{where}", ok, line, "" if ok else SETUP))
            continue
        others += 1
        if not ok:
            others_wrong.append(f"{each.name} {line}")
    if others:
        found = "; ".join(others_wrong) or f"{others} as required"
        findings.append(
            Finding(f"other packages{where}", not others_wrong, found, SETUP if others_wrong else "")
        )
    return findings


def _check_python(found: str, where: str) -> Finding:
    if is_checkout():
        needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    else:
        needed = metadata("worldmodel")["Requires-Python"]
    ok = SpecifierSet(needed).contains(found, prereleases=True)
    return Finding(
        f"python{where}",
        ok,
        f"{found} (needs {needed})",
        "" if ok else "make the environment with another Python",
    )


def check_extras(have: Mapping[str, str]) -> list[Finding]:
    """Optional packages: told, never a failure."""
    groups: dict[str, list[str]] = {}
    for each in requirements():
        extra = "" if each.marker is None else str(each.marker).rpartition("extra == ")[2].strip("\"'")
        if extra and extra not in NOT_FOR_USERS:
            groups.setdefault(extra, []).append(each.name)
    findings = []
    for extra, names in sorted(groups.items()):
        missing = [name for name in names if not have.get(name)]
        hint = f"optional, not installed: {', '.join(missing)} (pip install 'worldmodel[{extra}]')"
        findings.append(Finding(f"extra {extra}", True, hint if missing else "installed"))
    return findings


def probe(name: str, code: str, *, advice: str) -> tuple[Finding, list[str]]:
    """Runs code that prints a JSON list, in a process of its own: libraries that do not fit may end it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"no answer within {PROBE_S} s", advice), []
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return Finding(name, False, last, advice), []
    return Finding(name, True, "work"), json.loads(done.stdout.strip().splitlines()[-1])


def check_fit(have: Mapping[str, float], cfg: RunConfig | None, *, where: str = "") -> Finding:
    found = f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs for Ray"
    problem = "" if cfg is None else fit_problem(cfg, have)
    return Finding(
        f"CPUs{where}", not problem, problem.partition("; ")[0] or found, problem.partition("; ")[2]
    )


def check_decoding(cfg: RunConfig | None, gpus: int, cores: int | None = None) -> list[Finding]:
    """Whether this machine's cores decode as fast as training takes clips; asked where GPUs train on
    indexed manifests and nothing is cached."""
    if cfg is None or cfg.data.cache or not gpus or cfg.train.device == "cpu":
        return []
    from ray_jobs.pools import ClipCost, demand, estimated_decode_s, flops_of, starvation

    decode_s = estimated_decode_s([source.manifest for source in cfg.data.sources], cfg)
    if not decode_s:
        return []
    on_gpu = cfg.model_copy(update={"train": cfg.train.model_copy(update={"device": "cuda"})})
    clips_per_s = demand(on_gpu, flops_per_step=flops_of(cfg))
    free = max(1, (psutil.cpu_count() or 1 if cores is None else cores) - cfg.train.workers)
    problem = starvation(ClipCost(decode_s, 0.0), clips_per_s, free)
    found, _, advice = problem.rpartition("; ")
    return [
        Finding("decoding", not problem, found or f"{decode_s * clips_per_s:.3g} of {free} cores", advice)
    ]


def check_memory(cfg: RunConfig | None) -> Finding:
    """Free memory against the processes of a run; what the model itself takes comes on top."""
    free = _free_memory()
    if cfg is None:
        return Finding("memory", True, f"{free / GB:.1f} GB free")
    workers = cfg.train.workers
    needed = RAY_BYTES + PROCESS_BYTES * workers * (1 + max(1, cfg.data.decode_actors))
    found = f"{free / GB:.1f} GB free, {workers} workers with decoders take about {needed / GB:.1f} GB"
    return Finding("memory", free >= needed, found, "" if free >= needed else "use fewer train.workers")


def _free_memory() -> int:
    """Bytes; of the container where there is one, because psutil sees the machine behind it."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


def check_shared_memory(folder: Path = Path("/dev/shm"), needed: int = OBJECT_STORE_BYTES) -> list[Finding]:
    """Ray's object store lies there on Linux; containers give 64 MB unless asked."""
    if not folder.is_dir():
        return []
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.2f} GB free, Ray's store takes {needed / GB:.2f} GB"
    return [Finding(str(folder), free >= needed, found, "" if free >= needed else "docker run --shm-size=1g")]


def check_storage(cfg: RunConfig | None) -> Finding:
    """The folder of the runs can be written and has room."""
    storage = RunConfig().storage if cfg is None else cfg.storage
    if "://" in storage:
        return Finding("storage", False, f"{storage} is remote", "give a folder that every node mounts")
    folder = Path(storage).expanduser().resolve()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return Finding(
            "storage", False, f"{there}: cannot be written: {error.strerror}", "set storage to another folder"
        )
    free = shutil.disk_usage(there).free
    advice = "" if free >= DISK_BYTES else f"free {DISK_BYTES / GB:.0f} GB, or set storage to another folder"
    return Finding("storage", free >= DISK_BYTES, f"{folder}: {free / GB:.1f} GB free", advice)


def _diagnose_cluster(cfg: RunConfig | None, address: str) -> list[Finding]:
    try:
        facts = ask_cluster(address, "" if cfg is None else cfg.storage)
    except UserError as error:
        return [Finding("cluster", False, error.lines[0], "see cluster/README.md")]
    theirs, ours = facts.nodes[0].versions["ray"], version("ray")
    found = f"{len(facts.nodes)} nodes, ray {theirs} there and {ours} here"
    same = Finding("cluster", theirs == ours, found, "" if theirs == ours else f"install ray=={theirs} here")
    return [same, *check_cluster(facts, cfg)]


def check_cluster(facts: ClusterFacts, cfg: RunConfig | None) -> list[Finding]:
    """Equal versions on all nodes, above the floors; CPUs; storage that every node sees."""
    first = facts.nodes[0]
    different = [
        f"{package} {node.versions.get(package) or 'missing'} on {node.name}, "
        f"{found or 'missing'} on {first.name}"
        for node in facts.nodes[1:]
        for package, found in first.versions.items()
        if node.versions.get(package) != found
    ]
    found = "; ".join(different) or f"equal on {len(facts.nodes)} nodes"
    findings = check_versions(first.versions, where=" there")
    findings += [
        Finding("versions there", not different, found, "use one image for all nodes" if different else "")
    ]
    findings += [check_fit(facts.resources, cfg, where=" there")]
    if cfg is not None:
        bad = [f"{node.name}: {node.storage_problem}" for node in facts.nodes if node.storage_problem]
        found = "; ".join(bad) or f"{cfg.storage}: written by {len(facts.nodes)} nodes and seen by the head"
        advice = "mount one file system at this absolute path on every node" if bad else ""
        findings.append(Finding("storage there", not bad, found, advice))
    return findings
