"""What a run tells Prometheus, through the metrics agent that Ray has on every node.

Ray puts `ray_` before each name; cluster/prometheus.yml takes it off again. Each process has a series of its
own (label WorkerId), so queries sum. Without a cluster nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from worldmodel.layout import LEARNED


@dataclass(frozen=True)
class Definition:
    kind: Literal["counter", "gauge"]
    help: str
    label: str = ""  # besides `run`


PREFIX = "worldmodel_"
DEFINITIONS: dict[str, Definition] = {
    # the driver, from the rows of metrics.jsonl
    "steps_total": Definition("counter", "steps trained, those that were trained again included"),
    "step": Definition("gauge", "the step that was trained last"),
    "planned_steps": Definition("gauge", "train.steps"),
    "tokens_total": Definition("counter", "tokens that held media or text, of all workers"),
    "step_seconds": Definition("gauge", "of the last step, mean over workers"),
    "step_seconds_total": Definition("counter", "sum over steps"),
    "wait_seconds": Definition("gauge", "how long the last step waited for data, mean over workers"),
    "wait_seconds_total": Definition("counter", "sum over steps"),
    "stall_fraction": Definition("gauge", "share of the last step that was waiting for data"),
    "loss": Definition("gauge", "flow loss of the last step", label="modality"),
    "objective": Definition(
        "gauge", "what is minimised: flow and alignment of all modalities, by their weights"
    ),
    "evaluation": Definition("gauge", "held-out velocity error of the averaged weights", label="modality"),
    "learning_rate": Definition("gauge", "of the last step"),
    "grad_norm": Definition("gauge", "of the last step, before clipping"),
    "commits_total": Definition("counter", "commits of this start of the job"),
    "last_commit_timestamp_seconds": Definition("gauge", "when the last commit was complete, Unix time"),
    # training workers
    "clips_total": Definition("counter", "clips that went through training"),
    "quarantined_clips_total": Definition("counter", "clips that could not be used", label="reason"),
    # decode actors, and whoever else encodes clips
    "cached_clips_total": Definition("counter", "clips whose latents were in the cache"),
    "decoded_seconds_total": Definition("counter", "seconds of media that were decoded"),
    "decode_seconds_total": Definition("counter", "time spent on decoding"),
    "encode_seconds_total": Definition("counter", "time spent on encoding to latents"),
    "read_bytes_total": Definition("counter", "bytes of files that decoders read for clips"),
    "pixel_bytes_total": Definition("counter", "pictures that were decoded, at the size of their bucket"),
    "latent_bytes_total": Definition("counter", "latents and targets that were made"),
    "killed_decoders_total": Definition("counter", "decoders that crashed or went beyond data.limits"),
    # the driver, of the whole cluster
    "spilled_bytes": Definition("gauge", "of Ray's object store, written to disk since the cluster started"),
}
# Fragments of a clip's reason, which names the file: as a label it would make a series a clip.
REASONS = {
    "took longer than": "timed_out",
    "took more than": "too_large",
    "limits.": "too_large",
    "decoder crashed": "crashed",
    "its decoder": "crashed",
    "cannot be opened as media": "not_media",
    "is a list of other files": "not_media",
    "No such file": "missing",
    "no such": "missing",
    "is not a file": "missing",
    "is a folder": "missing",
    "shorter than one latent step": "too_short",
    "shorter than min_shot_s": "too_short",
    "the picture ends at": "ends_early",
    "past the end": "ends_early",
    "are not finite": "not_finite",
    "could be decoded": "undecodable",
    "can be decoded": "undecodable",
    "neither picture nor sound": "undecodable",
    # the index
    "only silence": "silent",
    "holds no sound": "silent",
    "silent: ": "silent",
    "static: ": "static",
    "black: ": "black",
    "near-duplicate of": "duplicate",
    "listed more than once": "duplicate",
    "drifts by": "drift",
    "too small: ": "too_small",
    "names no media": "bad_row",
    "is not a number": "bad_row",
    "is not a finite number": "bad_row",
    "the span must begin": "bad_row",
    "not an object of named fields": "bad_row",
    "actions": "bad_row",
    "speech must be": "bad_row",
}


def reason_label(reason: str) -> str:
    return next((label for fragment, label in REASONS.items() if fragment in reason), "other")


class RunMetrics:
    """The series of one run in this process. A call takes some microseconds and never waits."""

    def __init__(self, run: str) -> None:
        self.run = run

    def add(self, name: str, value: float = 1.0, label: str = "") -> None:
        if value > 0:  # Ray refuses to add nothing
            _metric(name).inc(value, tags=self._tags(name, label))

    def set(self, name: str, value: float, label: str = "") -> None:
        _metric(name).set(value, tags=self._tags(name, label))

    def row(self, row: dict[str, float]) -> None:
        """A row of metrics.jsonl: of a step, or of an evaluation."""
        for modality in LEARNED:
            if f"eval_{modality}" in row:
                self.set("evaluation", row[f"eval_{modality}"], modality)
            if f"loss_{modality}" in row:
                self.set("loss", row[f"loss_{modality}"], modality)
        if "loss" not in row:
            return
        wait_s = row["stall_fraction"] * row["step_s"]
        self.add("steps_total")
        self.add("tokens_total", row["tokens_per_s"] * row["step_s"])
        self.add("step_seconds_total", row["step_s"])
        self.add("wait_seconds_total", wait_s)
        self.set("step", row["step"])
        self.set("step_seconds", row["step_s"])
        self.set("wait_seconds", wait_s)
        self.set("stall_fraction", row["stall_fraction"])
        self.set("objective", row["loss"])
        self.set("learning_rate", row["learning_rate"])
        self.set("grad_norm", row["grad_norm"])

    def consumed(self, sample_ids: Iterable[int], reasons: dict[int, str]) -> None:
        """A micro-batch that was trained; its padding (-1) is no clip."""
        self.add("clips_total", sum(i >= 0 for i in sample_ids))
        for reason in reasons.values():
            self.add("quarantined_clips_total", label=reason_label(reason))

    def encoded(
        self,
        *,
        media_s: float,
        decode_s: float,
        encode_s: float,
        read_bytes: int,
        pixel_bytes: int,
        latent_bytes: int,
    ) -> None:
        """One clip, or a piece of one, became latents."""
        self.add("decoded_seconds_total", media_s)
        self.add("decode_seconds_total", decode_s)
        self.add("encode_seconds_total", encode_s)
        self.add("read_bytes_total", read_bytes)
        self.add("pixel_bytes_total", pixel_bytes)
        self.add("latent_bytes_total", latent_bytes)

    def killed(self, num_decoders: int) -> None:
        """`SandboxedReader.num_kills` since the last call."""
        self.add("killed_decoders_total", num_decoders)

    def spilled(self, num_bytes: int) -> None:
        self.set("spilled_bytes", num_bytes)

    def _tags(self, name: str, label: str) -> dict[str, str]:
        own = DEFINITIONS[name].label
        return {"run": self.run, own: label} if own else {"run": self.run}


@cache
def _metric(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    found = DEFINITIONS[name]
    labels = ("run", found.label) if found.label else ("run",)
    return (Counter if found.kind == "counter" else Gauge)(PREFIX + name, found.help, labels)
