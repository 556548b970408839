"""Jobs on a real cluster: a head and a second node, both on the loopback."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from ray_jobs.cluster import connect
from ray_jobs.doctor import diagnose
from ray_jobs.errors import JobError, UserError
from ray_jobs.runtime_env import ENVIRONMENT, ROOT, job_runtime_env, runtime_env
from ray_jobs.submit import auth_headers, check_paths, job_client, normal_address, submit, submit_command
from worldmodel.config import RunConfig

TOKEN = "a token of this test and of no other"
START_S = 90
STARTED = "Ray runtime started"
STARTS = 3  # Ray gives a node 30 s to come up, which a busy machine may not keep
NUM_CPUS = 2  # of each of the two nodes: training fills one, decoding must go to the other
CENSUS = """
import json, avtok, ray, ray_jobs, ray_jobs.cluster
from ray.util.state import list_actors
ray_jobs.cluster.connect()
alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
actors = [{"name": a.class_name, "node": a.node_id} for a in list_actors(detail=True, limit=999)]
print(json.dumps({"alive": alive, "actors": actors, "ray_jobs": ray_jobs.__file__, "avtok": avtok.__file__}))
"""


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example.org", "https://ray.example.org"),
        ("head", "http://head:8265"),
        ("head:9000", "http://head:9000"),
        ("ray://head:10001", "http://head:8265"),
        ("ray://[::1]:10001", "http://[::1]:8265"),
        ("auto", "http://127.0.0.1:8265"),
    ],
)
def test_every_form_of_address_becomes_the_dashboard_url(given, url):
    assert normal_address(given) == url


@pytest.mark.parametrize("given", ["ftp://head:21", "http://", ""])
def test_what_is_no_address_is_refused(given):
    with pytest.raises(UserError, match="--address"):
        normal_address(given)


def test_an_address_where_nothing_listens_is_one_clear_line():
    with pytest.raises(
        UserError, match=r"no Ray dashboard answers at http://127.0.0.1:\d+ \(Connection refused\)"
    ):
        job_client(f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="no Ray cluster answers"):
        connect(f"127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="worldmodel submit"):
        connect("http://127.0.0.1:8265")


def test_another_web_server_is_not_taken_for_a_dashboard():
    server = HTTPServer(("127.0.0.1", 0), NoDashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(UserError, match="another program answers"):
            job_client(f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()


def test_results_of_a_job_must_go_to_absolute_paths(tmp_path):
    for args in (["--out", "runs/demo"], ["--out=runs/demo"]):
        with pytest.raises(UserError, match=r"--out=runs/demo: .* absolute path"):
            check_paths("demo", args, ROOT)
    with pytest.raises(UserError, match="--out is missing"):
        check_paths("demo", [], ROOT)
    with pytest.raises(UserError, match="storage=runs"):
        check_paths("train", ["configs/demo.yaml"], ROOT)
    with pytest.raises(UserError, match=r"data\.manifest=clips"):
        check_paths(
            "train", ["configs/demo.yaml", "--set=storage=/runs", "--set", "data.manifest=clips"], ROOT
        )
    with pytest.raises(UserError, match="cannot be a job"):
        submit("doctor", [], address="head")


def test_the_config_of_a_job_travels_with_it(tmp_path):
    storage = ["--set", "storage=/mnt/runs"]
    here = str(ROOT / "configs" / "demo.yaml")
    assert check_paths("train", [here, *storage], ROOT) == ["configs/demo.yaml", *storage]
    outside = tmp_path / "mine.yaml"
    outside.write_text("seed: 1\n")
    assert check_paths("train", [str(outside), *storage], tmp_path) == ["mine.yaml", *storage]
    with pytest.raises(UserError, match="lies outside of what is sent"):
        check_paths("train", [str(outside), *storage], ROOT)


def test_the_token_is_found_where_ray_looks_for_it(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth_headers() == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home\n")
    assert auth_headers() == {"Authorization": "Bearer of the home"}
    (tmp_path / "token").write_text("of the path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert auth_headers() == {"Authorization": "Bearer of the path"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the variable")
    assert auth_headers() == {"Authorization": "Bearer of the variable"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert auth_headers() == {}


def test_a_job_does_not_send_its_code_a_second_time(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert runtime_env(local=False)["working_dir"] == str(ROOT)
    sent = '{"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "2"}, "working_dir": "gcs://package.zip"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", sent)
    inside = runtime_env(local=False)
    assert "working_dir" not in inside
    new = ENVIRONMENT.keys() - {"OMP_NUM_THREADS"}  # Ray refuses a key given twice
    assert inside["env_vars"].keys() == new


def test_a_folder_of_ones_own_travels_with_the_packages_beside_it(tmp_path):
    environment = job_runtime_env(tmp_path)
    assert environment["working_dir"] == str(tmp_path)
    assert {Path(p).name for p in environment["py_modules"]} == {"worldmodel", "ray_jobs", "avtok"}


@dataclass
class TwoNodes:
    """What the tests need to know of the cluster."""

    dashboard: str
    folder: Path


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    """`ray start` of a head and a node, with a token; stopped by their own process ids."""
    # short, and not pytest's: the paths of sockets end at 107 characters
    with tempfile.TemporaryDirectory(prefix="wm-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "token").write_text(TOKEN)
        gcs, dashboard = free_port(), free_port()
        head = ["--head", f"--port={gcs}", f"--ray-client-server-port={free_port()}"]
        head += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        node = [f"--address=127.0.0.1:{gcs}"]
        # A folder for each: in a shared one the second node unpacks the job's package anew, and a process
        # of the first that works in it has no folder any more.
        head, node = ([*args, f"--temp-dir={folder}/{name}"] for args, name in ((head, "0"), (node, "1")))
        with ray_start(head, folder, "head"), ray_start(node, folder, "node"):
            until(lambda: answers(dashboard), "the dashboard", folder)
            yield TwoNodes(f"http://127.0.0.1:{dashboard}", folder)


@pytest.fixture
def with_token(two_nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> TwoNodes:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(two_nodes.folder / "token"))
    return two_nodes


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)  # 100 s on two idle cores
def test_the_demo_runs_as_a_job_on_two_nodes(with_token, tmp_path):
    settings = ["train.steps=4", "train.checkpoint_every=2", "train.evaluate_clips=4", "data.batch_clips=4"]
    settings += ["rollout.clips=2", "rollout.steps=2", "data.held_out=0.3"]
    args = ["--out", str(tmp_path / "run"), "--clips", "16"]
    args += [word for setting in settings for word in ("--set", setting)]
    lines: list[str] = []
    result = submit("demo", args, address=with_token.dashboard, on_line=lines.append)
    assert result.status == "SUCCEEDED", "".join(lines)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert any("report: " in line for line in lines)

    seen: list[str] = []
    submit_command(f"python -c {shlex.quote(CENSUS)}", address=with_token.dashboard, on_line=seen.append)
    census = json.loads(next(line for line in seen if line.startswith("{")))
    assert len(census["alive"]) == 2
    ran_on = {
        actor["node"] for actor in census["actors"] if actor["name"] in ("RayTrainWorker", "RolloutActor")
    }
    ran_on |= {actor["node"] for actor in census["actors"] if actor["name"].startswith("MapWorker")}
    assert ran_on == set(census["alive"]), census
    assert "runtime_resources" in census["ray_jobs"]  # the code that ran is the one that was sent
    assert "runtime_resources" in census["avtok"]


@pytest.mark.ray
@pytest.mark.slow
def test_the_doctor_asks_every_node(with_token, tmp_path, monkeypatch):
    cfg = RunConfig.model_validate({"storage": str(tmp_path / "runs"), "train": {"workers": 2}})
    found = {finding.name: finding for finding in diagnose(cfg, with_token.dashboard)}
    assert all(finding.ok for finding in found.values()), found
    assert found["cluster"].found.startswith("2 nodes")
    assert found["storage there"].found.endswith("written by 2 nodes and seen by the head")
    assert list((tmp_path / "runs").iterdir()) == []
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another token")
    (refused,) = diagnose(cfg, with_token.dashboard)
    assert not refused.ok
    assert "refused ours" in refused.found


@pytest.mark.ray
@pytest.mark.slow
def test_a_failed_job_ends_with_the_last_lines_of_its_log(with_token):
    with pytest.raises(JobError) as caught:
        submit_command("echo before; echo the disk is full; exit 3", address=with_token.dashboard)
    assert "exit code 3" in caught.value.lines[0]
    assert "the disk is full" in caught.value.lines
    assert caught.value.exit_code == 1
    with pytest.raises(UserError) as caught:
        submit_command("echo no such folder; exit 2", address=with_token.dashboard)
    assert caught.value.exit_code == 2


class NoDashboard(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def ray_start(args: list[str], folder: Path, name: str) -> Iterator[None]:
    bin_folder = Path(sys.executable).parent
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",  # the job's `python`
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "OMP_NUM_THREADS": "1",
    }
    args = [
        *args,
        "--block",
        "--disable-usage-stats",
        f"--num-cpus={NUM_CPUS}",
        "--object-store-memory=150000000",
    ]
    # no fixed port: other clusters may run on this machine
    args += ["--min-worker-port=0", "--max-worker-port=0"]
    args += [f"--{each}={free_port()}" for each in ("dashboard-agent-listen-port", "metrics-export-port")]
    log = folder / f"{name}.log"
    for _ in range(STARTS):
        with log.open("w") as out:
            process = subprocess.Popen(
                [str(bin_folder / "ray"), "start", *args],
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            until(lambda run=process: run.poll() is not None or STARTED in log.read_text(), name, folder)
            if process.poll() is None:
                yield
                return
        finally:
            stop(process)
    raise AssertionError(log.read_text())


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=15)
    for one in alive:
        one.kill()
    process.wait(5)


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def until(fact: Callable[[], bool], what: str, folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while not fact():
        if time.monotonic() > deadline:
            logs = "\n".join(f"{log.name}: {log.read_text()[-2000:]}" for log in folder.glob("*.log"))
            raise AssertionError(f"{what} did not come up in {START_S} s\n{logs}")
        time.sleep(0.2)
