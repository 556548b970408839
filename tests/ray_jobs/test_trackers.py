"""Rows reach the real libraries, a resumed run goes on in them, and one that fails costs a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_jobs import trackers
from ray_jobs.errors import UserError
from ray_jobs.trackers import ID_FILE, TrackerThread, check_tracker, flat
from worldmodel.config import RunConfig


def config(kind: str) -> RunConfig:
    return RunConfig.model_validate({"name": "tracked", "train": {"tracker": kind}})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of MLflow's that needs no database."""
    address = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return address


def track(kind: str, run: Path, steps: range) -> TrackerThread:
    tracker = TrackerThread(config(kind), run)
    for step in steps:
        tracker.row({"step": step, "loss": 1.0 / (1 + step)})
    tracker.warning("the loss is where it began")
    tracker.close("finished")
    assert tracker.problem == ""
    return tracker


def test_mlflow_gets_rows_config_and_warnings_and_a_resumed_run_goes_on(tmp_path, store):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

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


def test_trackio_keeps_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which is read once, by the import
    pytest.importorskip("trackio")
    track("trackio", tmp_path, range(3))
    assert any(path.stat().st_size for path in (tmp_path / "trackio").rglob("*.db"))


def test_a_tracker_that_fails_says_so_once_and_takes_no_more_rows(tmp_path, monkeypatch, store):
    class Down(trackers.MLflow):
        def row(self, row: dict[str, float]) -> None:
            raise ConnectionError("no server answers\nand more lines")

    monkeypatch.setitem(trackers.KINDS, "mlflow", Down)
    tracker = TrackerThread(config("mlflow"), tmp_path)
    for step in range(100):
        tracker.row({"step": step, "loss": 1.0})
    tracker.close("finished")
    assert tracker.problem == "mlflow failed and gets no more rows: no server answers"


def test_a_library_that_is_not_installed_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setitem(trackers.MODULES, "trackio", "no_such_module")
    with pytest.raises(UserError, match=r"train\.tracker=trackio: .*; pip install trackio, or set"):
        check_tracker(config("trackio"))


def test_a_config_is_told_by_its_keys():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
