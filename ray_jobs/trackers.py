"""Weights & Biases, MLflow and trackio behind one interface. Each takes its address and login from its own
environment variables; `ray_jobs.tracking` runs one of them in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ray_jobs.errors import UserError
from worldmodel.config import RunConfig

PROJECT = "worldmodel"
Row = dict[str, float]


class Tracker(Protocol):
    """open gives the id under which a resumed run goes on, `known` there."""

    def open(self, cfg: RunConfig, run: Path, known: str) -> str: ...
    def row(self, row: Row) -> None: ...
    def warning(self, text: str) -> None: ...
    def close(self, status: str) -> None: ...


class Wandb:
    def open(self, cfg: RunConfig, run: Path, known: str) -> str:
        import wandb

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
        ends = {"finished": "FINISHED", "stopped": "KILLED"}
        self.client.set_terminated(self.id, ends.get(status, "FAILED"))


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


def check_tracker(kind: str) -> None:
    """UserError where the library is not installed, or has nowhere to put anything."""
    if kind == "none":
        return
    if importlib.util.find_spec(kind) is None:
        raise UserError(
            f"train.tracker={kind}: {kind} is not installed; pip install {kind}, or set train.tracker=none"
        )
    has_database = importlib.util.find_spec("sqlalchemy") is not None
    if kind == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI") and not has_database:
        raise UserError(
            "train.tracker=mlflow: MLFLOW_TRACKING_URI is not set, and mlflow-skinny has no store of "
            "its own; set it to a server's address, such as http://127.0.0.1:5000, or install mlflow"
        )


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
