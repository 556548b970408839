"""Jobs on a real cluster: a head and a second node, both on the loopback."""

from __future__ import annotations

import json
import shlex
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ray_jobs.cluster import connect
from ray_jobs.doctor import diagnose
from ray_jobs.errors import JobError, UserError
from ray_jobs.runtime_env import ENVIRONMENT, ROOT, job_runtime_env, runtime_env
from ray_jobs.submit import auth_headers, check_paths, job_client, normal_address, submit, submit_command
from tests.ray_jobs.two_nodes import free_port
from worldmodel.config import RunConfig

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
    shared = ["configs/real_clips.yaml", "--set=storage=/runs", "--set=data.manifest=/clips"]
    with pytest.raises(UserError, match=r"data\.cache=runs/cache: .* absolute path"):
        check_paths("train", shared, ROOT)
    shared.append("--set=data.cache=s3://bucket/cache")
    assert check_paths("train", shared, ROOT) == shared
    repa = ["--set=objective.rep=repa", "--set=data.targets=[{name: dino, encoder: models/dino}]"]
    for settings, named in (
        (["--set=train.init=runs/x"], "train.init=runs/x"),
        (repa, "data.targets dino=models/dino"),
        (["--set=data.labels.captioner=models/blip"], "data.labels.captioner=models/blip"),
    ):
        with pytest.raises(UserError, match=f"{named}: .* absolute path"):
            check_paths("train", [*shared, *settings], ROOT)
    assert check_paths("train", [*shared, "--set=train.init=bounce"], ROOT)  # it ships
    with pytest.raises(UserError, match="cannot be a job"):
        submit("doctor", [], address="head")


def test_a_model_of_a_job_is_shipped_or_lies_where_every_node_sees_it():
    for kind in ("rollout", "serve"):
        out = ["--out", "/mnt/out"]
        for fine in (["bounce", *out], [*out, "bounce"], ["--json", "/mnt/runs/demo", *out]):
            assert check_paths(kind, fine, ROOT) == fine
        with pytest.raises(UserError, match=r"model=runs/demo: .* absolute path"):
            check_paths(kind, ["runs/demo", *out], ROOT)
        with pytest.raises(UserError, match=f"submit {kind}: no model given; shipped: bounce"):
            check_paths(kind, out, ROOT)
    with pytest.raises(UserError, match="out=served"):
        check_paths("serve", ["bounce", "--out", "served"], ROOT)


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
