"""What the nodes of a cluster say of themselves: versions, resources, and whether they share the storage."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ray_jobs.cluster import connect
from ray_jobs.errors import JobError
from ray_jobs.submit import submit_command

PACKAGES = ("ray", "torch", "torchaudio", "deepspeed", "av")
MARK = "worldmodel-cluster-facts "
TIMEOUT_S = 120


@dataclass(frozen=True)
class NodeFacts:
    """storage_problem is empty when the node wrote a file that the head saw."""

    name: str
    versions: dict[str, str]
    storage_problem: str


@dataclass(frozen=True)
class ClusterFacts:
    """The head's node comes first."""

    nodes: list[NodeFacts]
    resources: dict[str, float]


def ask_cluster(address: str, storage: str) -> ClusterFacts:
    """Runs one small job that asks every node. storage is tried where it is an absolute path.

    UserError when the cluster cannot be reached, JobError when the job breaks.
    """
    lines: list[str] = []
    code = f"from ray_jobs.cluster_facts import tell; tell({storage!r})"
    submit_command(f"python -c {shlex.quote(code)}", address=address, on_line=lines.append)
    told = [line.partition(MARK)[2] for line in lines if line.startswith(MARK)]
    if not told:
        raise JobError(f"{address}: the job ran and said nothing", *lines[-3:])
    facts = json.loads(told[-1])
    return ClusterFacts([NodeFacts(**node) for node in facts["nodes"]], facts["resources"])


def tell(storage: str) -> None:
    """The job: writes the facts as one line on standard output."""
    connect()
    sys.stdout.write(f"{MARK}{json.dumps(asdict(collect(storage)))}\n")


def collect(storage: str) -> ClusterFacts:
    """Asks every living node by a task that needs no CPU. Ray is connected."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0)
    def ask(node: str) -> tuple[dict[str, str], str]:
        return versions(PACKAGES), leave_mark(storage, node)

    here = ray.get_runtime_context().get_node_id()
    nodes = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: n["NodeID"] != here)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)).remote(
            n["NodeID"]
        )
        for n in nodes
    ]
    facts = [
        _node_facts(n, *said, storage)
        for n, said in zip(nodes, ray.get(asked, timeout=TIMEOUT_S), strict=True)
    ]
    return ClusterFacts(facts, {name: float(have) for name, have in ray.cluster_resources().items()})


def _node_facts(node: dict[str, Any], found: dict[str, str], problem: str, storage: str) -> NodeFacts:
    if not problem:
        mark = _mark(storage, node["NodeID"])
        if mark.exists():
            mark.unlink()
        else:
            problem = f"{storage} is another folder there than on the head"
    return NodeFacts(f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})", found, problem)


def leave_mark(storage: str, node: str) -> str:
    """Writes a file into the storage; why not, when that cannot be."""
    if not Path(storage).is_absolute():
        return f"{storage or 'no storage'} is no absolute path"
    try:
        Path(storage).mkdir(parents=True, exist_ok=True)
        _mark(storage, node).write_text(node)
    except OSError as error:
        return f"{storage}: cannot be written: {error.strerror}"
    return ""


def _mark(storage: str, node: str) -> Path:
    return Path(storage) / f".worldmodel-doctor-{node}"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and the packages; empty where one is missing."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found
