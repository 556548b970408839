"""The commands of docs/infrastructure.md, as they stand there, on two nodes beside a Prometheus."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ray_jobs.cli import app
from ray_jobs.metrics import DEFINITIONS, PREFIX
from ray_jobs.plan import Plan
from ray_jobs.run_folder import last_commit
from ray_jobs.runtime_env import ROOT
from ray_jobs.submit import job_client
from ray_jobs.train import prepare
from tests.ray_jobs.two_nodes import TwoNodes, answers, free_port, stop, until
from worldmodel.load_config import load_config

PAGE = (ROOT / "docs" / "infrastructure.md").read_text("utf-8")
BOARD = json.loads((ROOT / "cluster" / "grafana" / "worldmodel.json").read_text("utf-8"))
ADDRESS = "http://127.0.0.1:8265"
CLIPS, STEPS = 10, 6
SMALL = {  # the page's own sizes would take an hour here
    "render": ["--clips", str(CLIPS)],
    "train": [
        f"--set={setting}"
        for setting in (
            *(f"train.steps={STEPS}", f"train.checkpoint_every={STEPS // 2}", "train.evaluate_clips=2"),
            "data.max_quarantine_rate=1",
            *("data.batch_clips=2", "data.held_out=0.3", "model.depth=2", "model.width=96"),
            "train.precision=fp32",  # many processors take ten times as long in bf16
            *("rollout.clips=1", "rollout.steps=1", "rollout.show=0"),
        )
    ],
    "tokenize": [],
    "rollout": ["--steps", "1", "--actors", "1"],
    "serve": [],
}


def commands() -> list[list[str]]:
    """Every command line of the page."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def command(*begins: str) -> list[str]:
    """The one command of the page that begins so, without `worldmodel`."""
    (found,) = [each for each in commands() if tuple(each[: len(begins)]) == begins]
    return found[1:] if found[0] == "worldmodel" else found


@dataclass
class Prometheus:
    url: str

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Series of an instant query; a query that does not parse is an HTTP error."""
        with urllib.request.urlopen(
            f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        ) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]["result"]

    def value(self, query: str) -> float:
        (series,) = self.ask(query)
        return float(series["value"][1])

    def holds(self, query: str) -> bool:
        return bool(self.ask(query))


@dataclass
class Cluster:
    nodes: TwoNodes
    mount: Path

    def placed(self, words: list[str]) -> list[str]:
        """The page's words with this cluster's address and a mount of this test."""
        return [
            word.replace(ADDRESS, self.nodes.dashboard).replace("/mnt", str(self.mount)) for word in words
        ]

    def run(self, *begins: str, also: list[str] | None = None) -> str:
        done = CliRunner().invoke(app, self.placed(command(*begins)) + (also or []))
        assert done.exit_code == 0, f"{done.output}\n{done.exception}"
        return done.output

    def submit(self, kind: str) -> str:
        return self.run("worldmodel", "submit", kind, also=SMALL[kind])


@pytest.fixture(scope="module")
def cluster(two_nodes: TwoNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_TOKEN", raising=False)
        patch.delenv("RAY_AUTH_MODE", raising=False)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(two_nodes.folder / "token"))
        patch.chdir(ROOT)
        yield Cluster(two_nodes, tmp_path_factory.mktemp("mount"))


@pytest.fixture(scope="module")
def prometheus(two_nodes: TwoNodes) -> Iterator[Prometheus]:
    """By the page's command, with the cluster's own discovery file and a quick pace."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus on this machine")
    folder, url = two_nodes.folder / "prometheus", f"127.0.0.1:{free_port()}"
    folder.mkdir()
    settings = yaml.safe_load((ROOT / "cluster" / "prometheus.yml").read_text("utf-8"))
    settings["global"]["scrape_interval"] = "1s"
    settings["scrape_configs"][0]["file_sd_configs"] = [{"files": [str(two_nodes.discovery)]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    words = command("prometheus")
    words = [w.replace("cluster/prometheus.yml", str(folder / "prometheus.yml")) for w in words]
    words = [w.replace("127.0.0.1:9090", url) for w in words]
    with (two_nodes.folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*words, f"--storage.tsdb.path={folder}/data"], stdout=log, stderr=log)
    try:
        found = Prometheus(f"http://{url}")
        until(lambda: _holds(found, 'count(up{job="ray"} == 1) >= 2'), "prometheus", two_nodes.folder)
        yield found
    finally:
        stop(process)


def _holds(prometheus: Prometheus, query: str) -> bool:
    try:
        return prometheus.holds(query)
    except OSError:  # it starts
        return False


@pytest.fixture(scope="module")
def clips(cluster: Cluster) -> Path:
    cluster.submit("render")
    return cluster.mount / "clips"


@pytest.fixture(scope="module")
def filled(cluster: Cluster, prometheus: Prometheus, clips: Path) -> str:
    """What the page's job that fills the cache said."""
    return cluster.submit("tokenize")


@pytest.fixture(scope="module")
def trained(cluster: Cluster, prometheus: Prometheus, clips: Path, filled: str) -> Path:
    """The run of the page's training job. Two of its clips left the cache, of which one broke as well."""
    words = cluster.placed(command("worldmodel", "submit", "train")) + SMALL["train"]
    words = " ".join(words).replace("--set=", "--set ").split()
    cfg = load_config("configs/debug_cpu.yaml", [b for a, b in itertools.pairwise(words) if a == "--set"])
    folder, plan, _ = prepare(cfg, "pytest")
    for sample in (plan.sample(0), plan.sample(1)):
        shutil.rmtree(cluster.mount / "cache" / sample.content_sha256[:2] / sample.content_sha256)
    broken = Path(plan.sample(0).uri)
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    cluster.submit("train")
    broken.write_bytes(whole)
    return folder.path


pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_render_writes_clips_where_every_node_sees_them(clips: Path):
    assert len(list(clips.glob("*.mp4"))) == CLIPS
    assert (clips / "truth.parquet").is_file()


def test_a_dry_run_and_the_doctor_say_that_the_job_can_go(cluster: Cluster, clips: Path):
    said = cluster.run("worldmodel", "train", "configs/debug_cpu.yaml")
    assert f"data: {CLIPS} clips" in said
    assert "ok   storage there" in cluster.run("worldmodel", "doctor")


def test_training_runs_to_its_end(trained: Path):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(STEPS))
    assert last_commit(trained).name.startswith(f"step-{STEPS:07d}")
    assert (trained / "report.html").is_file()


def test_prometheus_has_the_numbers_of_the_run(trained: Path, prometheus: Prometheus):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    plan = Plan.load(trained / "plan.parquet")
    seen = sum(len(ids) for ids in plan.sample_ids_before(STEPS * 2).values())  # of two micro-batches a step

    def total(name: str) -> float:
        return prometheus.value(f'sum(last_over_time(worldmodel_{name}{{run="debug_cpu"}}[1h]))')

    assert total("steps_total") == STEPS
    assert total("commits_total") == 2
    assert total("clips_total") == seen
    query = 'sum(worldmodel_quarantined_clips_total{run="debug_cpu", reason="undecodable"})'
    assert prometheus.value(query) == total("quarantined_clips_total") >= 1
    assert total("tokens_total") == pytest.approx(
        sum(r["tokens_per_s"] * r["step_s"] for r in steps), rel=1e-3
    )
    assert total("step_seconds_total") == pytest.approx(sum(r["step_s"] for r in steps), rel=1e-3)
    assert total("planned_steps") == STEPS
    assert total("grad_norm") == pytest.approx(steps[-1]["grad_norm"], rel=1e-3)
    for modality in ("video", "audio"):
        query = f'max(last_over_time(worldmodel_loss{{run="debug_cpu", modality="{modality}"}}[1h]))'
        assert prometheus.value(query) == pytest.approx(steps[-1][f"loss_{modality}"], rel=1e-3)
    committed_s = last_commit(trained).stat().st_mtime
    assert total("last_commit_timestamp_seconds") == pytest.approx(committed_s, abs=30)
    good = seen - total("quarantined_clips_total")
    decoded = total("decoded_seconds_total") / cfg_clip_s(trained)
    assert decoded >= 0.9
    assert total("cached_clips_total") >= good / 2
    assert total("cached_clips_total") + decoded >= good * 0.9
    assert total("encode_seconds_total") > 0 < total("decode_seconds_total")
    assert total("latent_bytes_total") > 1000


def cfg_clip_s(run: Path) -> float:
    return load_config(run / "config.yaml").data.clip_s


def test_every_metric_of_the_page_is_defined_and_the_other_way_round():
    cells = " ".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `worldmodel_"))
    named = set(re.findall(r"worldmodel_(\w+)", cells))
    assert named | {"step_seconds_total", "wait_seconds_total"} == set(DEFINITIONS)


def test_every_query_of_the_dashboard_parses_and_the_runs_own_have_data(
    trained: Path, prometheus: Prometheus, cluster: Cluster
):
    asked = 0
    for title, expression in queries():
        query = expression.replace("$run", "debug_cpu").replace("$__rate_interval", "1h")
        prometheus.ask(query)
        # This job is over in seconds: a series may have one sample, of which there is no rate.
        query = query.replace("rate(", "last_over_time(")
        found = prometheus.ask(re.sub(r"(worldmodel_\w+\{[^}]*\})(?!\[)", r"last_over_time(\1[1h])", query))
        asked += 1
        assert found or title == "Cluster", query
    assert asked > 25
    machines = [
        expression for row, expression in queries() if row == "Cluster" and "gpu" not in expression.lower()
    ]
    for expression in machines:
        if "gram" not in expression:
            until(lambda query=expression: prometheus.holds(query), expression, cluster.nodes.folder)


def test_the_dashboard_asks_for_metrics_that_exist():
    for _, expression in queries():
        for name in re.findall(rf"{PREFIX}(\w+)", expression):
            assert name in DEFINITIONS


def queries() -> list[tuple[str, str]]:
    """(row, expression) of every panel."""
    row, found = "", []
    for panel in BOARD["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        found += [(row, target["expr"]) for target in panel.get("targets", [])]
    return found


def test_tokenize_fills_a_cache_that_every_node_sees(cluster: Cluster, filled: str):
    assert f"encoded {CLIPS}, cached 0" in filled, filled
    assert "quarantined 0" in filled, filled
    assert any((cluster.mount / "cache").rglob("*"))


def test_a_rollout_of_a_shipped_model_continues_clips(cluster: Cluster, clips: Path):
    cluster.submit("rollout")
    rows = json.loads((cluster.mount / "rollouts" / "rollouts.json").read_text())
    assert len(rows) == CLIPS
    assert all((cluster.mount / "rollouts" / row["rollout"]).stat().st_size > 1000 for row in rows)


def test_a_served_model_answers_until_its_job_is_stopped(cluster: Cluster):
    port = free_port()
    said = cluster.run("worldmodel", "submit", "serve", also=["--port", str(port)])
    job = re.search(r"job (\S+);", said)[1]
    client = job_client(cluster.nodes.dashboard)
    try:
        eventually(lambda: "page: " in client.get_job_logs(job) or over(client, job), "the page")
        log = client.get_job_logs(job)
        token = re.search(r"#token=(\S+)", log)[1]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request) as answer:
            assert "bounce" in answer.read().decode()
        assert client.get_job_status(job).value == "RUNNING"
    finally:
        client.stop_job(job)
    eventually(lambda: over(client, job), "its end")
    assert client.get_job_status(job).value in ("STOPPED", "SUCCEEDED"), client.get_job_logs(job)
    eventually(lambda: not answers(port), "the port to be free")


def over(client: Any, job: str) -> bool:
    return client.get_job_status(job).is_terminal()


def eventually(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not fact():
        assert time.monotonic() < deadline, f"waited 120 s for {what}"
        time.sleep(0.5)


def test_every_command_of_the_page_is_run_here_or_needs_what_is_not_here():
    run = {("worldmodel", "train"), ("worldmodel", "doctor"), ("worldmodel", "kuberay"), ("prometheus",)}
    run |= {("worldmodel", "submit", kind) for kind in SMALL}
    for words in commands():
        assert any(tuple(words[: len(begins)]) == begins for begins in run) or words[0] == "docker", words
