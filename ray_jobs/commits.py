"""Commits that training does not wait for: a copy of the weights is taken at once and written by a thread.

Ray Train enters a commit into its list when every rank has written its part, and in the order of the steps:
what was not written to the end is none.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import Checkpoint, CheckpointUploadMode

from ray_jobs.accounting import Ledger
from ray_jobs.errors import storage_problem
from ray_jobs.metrics import RunMetrics
from worldmodel.batch import LatentBatch
from worldmodel.config import RunConfig
from worldmodel.train.checkpoint import Snapshot, flush_to_disk
from worldmodel.train.engine import Engine


@dataclass
class Writing:
    """One commit of this rank on its way to the disk."""

    step: int
    ledger: dict[str, bytes]
    done: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


class Commits:
    """Weights and consumed ids go into one checkpoint, so that they are committed together or not at all."""

    def __init__(
        self,
        cfg: RunConfig,
        engine: Engine,
        ledger: Ledger,
        attempt: int,
        board: Any,
        base: dict[str, str] | None,
    ) -> None:
        """base: what a LoRA adapts."""
        self.base = base
        self.cfg, self.engine, self.ledger, self.attempt = cfg, engine, ledger, attempt
        self.board, self.metrics = board, RunMetrics(cfg.name)
        self.snapshot: Snapshot | None = None
        self.writing: Writing | None = None

    def consumed(self, batch: LatentBatch) -> None:
        sample_ids = batch.sample_ids_B.tolist()
        self.ledger.add(batch.epoch, sample_ids, batch.reasons)
        self.metrics.consumed(sample_ids, batch.reasons)

    def commit(self, step: int) -> None:
        """Returns when weights and ledger are copied and the commit before is written. A barrier over ranks.

        Folder names carry the attempt: what a crash left half-written is never mixed in.
        """
        self.wait()
        self.snapshot = self.snapshot.take(self.engine) if self.snapshot else Snapshot.of(self.engine)
        self.ledger.position = step * self.cfg.train.micro_batches
        self.writing = Writing(step, self.ledger.files(rank=self.engine.rank))
        name = f"checkpoints/step-{step:07d}-{self.attempt:03d}"
        storage: Any = ray.train.get_context().get_storage()
        ray.train.report(
            {"step": step},
            checkpoint=Checkpoint.from_directory(Path(storage.experiment_fs_path) / name),  # where it will be
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._write,
            delete_local_checkpoint_after_upload=False,
        )

    def wait(self) -> None:
        """Until this rank's last commit is written. Raises what its thread met."""
        if self.writing is None:
            return
        self.writing.done.wait()
        if self.writing.error is not None:
            raise self.writing.error

    def _write(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Runs in Ray's thread; an error there ends the worker, so that it must be told from here."""
        assert self.snapshot is not None, "a commit takes a snapshot first"
        assert self.writing is not None, "a commit says first what is written"
        folder, rank = Path(checkpoint.path), self.engine.rank
        description: dict[str, Any] = {"model": self.cfg.model.model_dump(mode="json"), "seed": self.cfg.seed}
        if self.base:
            description["base"] = self.base
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.snapshot.write(folder, self.writing.step, description)
            for file, content in self.writing.ledger.items():
                (folder / file).write_bytes(content)
                flush_to_disk(folder / file)
        except Exception as error:
            tell_why(self.board, rank, error)
            self.writing.error = error
            raise
        finally:
            self.writing.done.set()
        if rank == 0:
            self.board.committed.remote(time.time())
        return checkpoint


def tell_why(board: Any, rank: int, error: Exception) -> None:
    """What broke a worker, in one line. Storage that fails ends the job: no restart can mend it."""
    if problem := storage_problem(error):
        ray.get(board.ended.remote({"status": "failed", "step": -1, "reason": problem}))
    else:
        ray.get(board.failed.remote(f"rank {rank}: {_cause(error)}"))


def _cause(error: Exception) -> str:
    """Ray's errors hold a worker's whole traceback, which ends with the cause."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[-1] if isinstance(error, RayError) else f"{type(error).__name__}: {lines[0]}"
