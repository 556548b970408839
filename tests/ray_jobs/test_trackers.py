"""Rows reach the real libraries, a resumed run goes on in them, and one that fails costs a warning."""

from __future__ import annotations

import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import tracking
from ray_jobs.errors import UserError
from ray_jobs.run_folder import WARNINGS
from ray_jobs.trackers import check_tracker, flat
from ray_jobs.tracking import ID_FILE, LOG, METRICS, Tracking
from worldmodel.config import RunConfig

BEFORE = {"step": 99, "loss": 9.0}  # of an earlier start: not sent again


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of MLflow's that needs no database."""
    address = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return address


@pytest.fixture
def silence() -> Iterator[str]:
    """The address of a server that takes every request and never answers."""
    ends = threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            ends.wait()

        do_GET = do_POST

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    ends.set()
    server.shutdown()


def begin(kind: str, run: Path) -> Tracking:
    return Tracking(RunConfig.model_validate({"name": "tracked", "train": {"tracker": kind}}), run)


def write(run: Path, steps: range) -> None:
    with (run / METRICS).open("a") as file:
        file.writelines(json.dumps({"step": step, "loss": 1.0 / (1 + step)}) + "\n" for step in steps)


def track(kind: str, run: Path, steps: range) -> None:
    follows = begin(kind, run)
    write(run, steps)
    (run / WARNINGS).write_text("the loss is where it began\n")
    assert follows.close("finished") == "", (run / LOG).read_text()


def test_mlflow_gets_new_rows_config_and_warnings_and_a_resumed_run_goes_on(tmp_path, store):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    (tmp_path / METRICS).write_text(json.dumps(BEFORE) + "\n")
    track("mlflow", tmp_path, range(3))
    track("mlflow", tmp_path, range(2, 5))  # step 2 is trained again
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("worldmodel")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((tmp_path / ID_FILE).read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("tracked", "FINISHED")
    assert run.data.params["train.tracker"] == "mlflow"
    assert run.data.tags["warning"] == "the loss is where it began"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(metric.step for metric in history) == [0, 1, 2, 2, 3, 4]
    assert {metric.step: metric.value for metric in history}[4] == 0.2


def test_wandb_keeps_rows_and_config_where_there_is_no_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    track("wandb", tmp_path, range(3))
    (stored,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = stored.read_bytes()
    assert json.loads((tmp_path / ID_FILE).read_text())["wandb"].encode() in content
    for written in (b"tracked", b"0.3333333333333333", b"sound_lag"):
        assert written in content, written


def test_without_a_login_wandb_says_so_and_asks_nobody(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # whose netrc would hold one
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    follows = begin("wandb", tmp_path)
    said = ""
    until = time.monotonic() + 60
    while not said and time.monotonic() < until:
        said = follows.problem()
        time.sleep(0.1)
    assert said.startswith("wandb failed and gets no more rows: ")
    assert "API key" in said or "login" in said
    assert follows.problem() == follows.close("finished") == ""  # told once


def test_a_server_that_never_answers_is_left_when_the_run_is_done(tmp_path, monkeypatch, silence):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silence)
    monkeypatch.setattr(tracking, "PATIENCE_S", 2.0)
    follows = begin("mlflow", tmp_path)
    write(tmp_path, range(100))
    assert follows.problem() == ""
    said = follows.close("finished")
    assert said == "mlflow was not done 2 s after the run and was ended; what it lacks is in metrics.jsonl"
    assert follows.process is not None
    assert follows.process.returncode is not None


def test_trackio_keeps_rows_and_prints_elsewhere(tmp_path, monkeypatch, capfd):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    track("trackio", tmp_path, range(3))
    assert any(path.stat().st_size for path in (tmp_path / "trackio").rglob("*.db"))
    assert capfd.readouterr().out == ""


def test_a_library_that_is_not_installed_or_has_no_store_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.tracker=trackio: .*; pip install trackio, or set"):
        check_tracker("trackio")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sqlalchemy" else os)
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI is not set, .*; set it to a server's address"):
        check_tracker("mlflow")
    check_tracker("none")


def test_a_config_is_told_by_its_keys():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
