"""Weights & Biases, MLflow or trackio, by train.tracker: where a run's rows, config and warnings go besides
metrics.jsonl and TensorBoard.

Each library takes its address and login from its own environment variables. What it does happens in a thread:
a tracker that is slow or down costs the run nothing, and its first error is one warning.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ray_jobs.errors import UserError
from ray_jobs.run_folder import write_whole
from worldmodel.config import RunConfig

PROJECT = "worldmodel"
ID_FILE = "tracker.json"  # so that a resumed run goes on where it was
MODULES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
PATIENCE_S = 30.0  # for what is still under way at the end
Row = dict[str, float]


class Tracker(Protocol):
    """One library. open gives the id under which it goes on."""

    def open(self, cfg: RunConfig, run: Path, known: str) -> str: ...
    def row(self, row: Row) -> None: ...
    def warning(self, text: str) -> None: ...
    def close(self, status: str) -> None: ...


class Wandb:
    def open(self, cfg: RunConfig, run: Path, known: str) -> str:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=cfg.name,
            id=known or None,
            resume="allow",
            config=cfg.model_dump(mode="json"),
            dir=str(run),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Steps that are trained again after a restart appear again: a step of wandb's own could not go back.
        self.run.define_metric("*", step_metric="step")
        return str(self.run.id)

    def row(self, row: Row) -> None:
        self.run.log(row)

    def warning(self, text: str) -> None:
        with suppress(Exception):  # runs that are offline have no alerts
            self.run.alert(title=PROJECT, text=text)

    def close(self, status: str) -> None:
        self.run.finish(exit_code=0 if status in ("finished", "stopped") else 1)


class MLflow:
    def open(self, cfg: RunConfig, run: Path, known: str) -> str:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self.client, self.metric = MlflowClient(), Metric
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self.client.create_experiment(experiment)
        if known:
            self.id = known
            self.client.set_terminated(known, status="RUNNING")
            return known
        self.id = self.client.create_run(experiment_id, run_name=cfg.name).info.run_id
        for name, value in flat(cfg.model_dump(mode="json")).items():
            self.client.log_param(self.id, name, str(value)[:500])
        return self.id

    def row(self, row: Row) -> None:
        now, step = int(time.time() * 1000), int(row["step"])
        metrics = [
            self.metric(name, float(value), now, step) for name, value in row.items() if name != "step"
        ]
        self.client.log_batch(self.id, metrics=metrics)

    def warning(self, text: str) -> None:
        self.client.set_tag(self.id, "warning", text)

    def close(self, status: str) -> None:
        self.client.set_terminated(
            self.id, {"finished": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED")
        )


class Trackio:
    def open(self, cfg: RunConfig, run: Path, known: str) -> str:
        import trackio  # pyright: ignore[reportMissingImports]

        self.trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(project=project, name=cfg.name, resume="allow", config=flat(cfg.model_dump(mode="json")))
        return cfg.name

    def row(self, row: Row) -> None:
        self.trackio.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))

    def warning(self, text: str) -> None:
        with suppress(AttributeError):  # older ones have no alerts
            self.trackio.alert(title=PROJECT, text=text)

    def close(self, status: str) -> None:
        self.trackio.finish()


KINDS: dict[str, Callable[[], Tracker]] = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}


def check_tracker(cfg: RunConfig) -> None:
    """UserError where the library is not installed."""
    kind = cfg.train.tracker
    if kind != "none" and importlib.util.find_spec(MODULES[kind]) is None:
        raise UserError(
            f"train.tracker={kind}: {MODULES[kind]} is not installed; pip install {kind}, or set "
            "train.tracker=none"
        )


class TrackerThread:
    """Hands rows and warnings on. `problem` says why nothing arrives any more, once something went wrong."""

    def __init__(self, cfg: RunConfig, run: Path) -> None:
        self.cfg, self.run, self.problem = cfg, run, ""
        self.todo: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        if cfg.train.tracker != "none":
            self.thread = threading.Thread(target=self._work, args=(KINDS[cfg.train.tracker](),), daemon=True)
            self.thread.start()

    def row(self, row: Row) -> None:
        self._put(lambda tracker: tracker.row(row))

    def warning(self, text: str) -> None:
        self._put(lambda tracker: tracker.warning(text))

    def close(self, status: str) -> None:
        """Waits a while for what is under way."""
        if self.thread is None:
            return
        self._put(lambda tracker: tracker.close(status))
        self.todo.put(None)
        self.thread.join(PATIENCE_S)
        if self.thread.is_alive():
            self.problem = self.problem or f"{self.cfg.train.tracker} did not finish in {PATIENCE_S:.0f} s"

    def _put(self, what: Callable[[Tracker], None]) -> None:
        if self.thread is not None and not self.problem:
            self.todo.put(what)

    def _work(self, tracker: Tracker) -> None:
        try:
            kind, known = self.cfg.train.tracker, _known(self.run)
            known[kind] = tracker.open(self.cfg, self.run, known.get(kind, ""))
            write_whole(self.run / ID_FILE, json.dumps(known))
            while (what := self.todo.get()) is not None:
                what(tracker)
        except Exception as error:  # whatever a library or its server does, the run goes on
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.problem = f"{self.cfg.train.tracker} failed and gets no more rows: {said}"


def _known(run: Path) -> dict[str, str]:
    """Ids of this run, by tracker."""
    path = run / ID_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
