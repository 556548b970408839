"""What reaches Prometheus is small in number; that it is right is asked in test_infrastructure_page.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_jobs.metrics import DEFINITIONS, REASONS, RunMetrics, reason_label
from ray_jobs.metrics_files import MetricsFiles
from ray_jobs.plan import Plan
from ray_jobs.stages import EncodeBatch
from worldmodel.config import RunConfig

LABELS = {"missing", "not_media", "undecodable", "ends_early", "too_short", "not_finite"}
LABELS |= {"timed_out", "too_large", "crashed", "bad_row"}
LABELS |= {"silent", "static", "black", "duplicate", "drift", "too_small"}
SAID = {
    "/a.mp4: took longer than 120 s; its decoder was killed": "timed_out",
    "/a.mp4: took more than 4096 MB (std::bad_alloc)": "too_large",
    "/a.mp4: its frames have 99999999 pixels, limits.max_pixels=35651584": "too_large",
    "the decoder crashed on this file": "crashed",
    "shot of 0.10 s at 1.00 s: shorter than min_shot_s=0.5": "too_short",
    "near-duplicate of /b.mp4": "duplicate",
    "drifts by 0.500 s: the sound's stamps run": "drift",
    "start_s='soon' is not a number of seconds": "bad_row",
    "s3://bucket/a.mp4: no such object": "missing",
}


@pytest.mark.parametrize(
    ("harm", "label"),
    [
        (lambda path, whole: path.unlink(), "missing"),
        (lambda path, whole: path.write_bytes(b"this is no film" * 99), "not_media"),
        (lambda path, whole: path.write_bytes(whole[:300]), "undecodable"),
    ],
)
def test_a_reason_becomes_a_label_without_the_name_of_the_file(
    broken_plan: Plan, cfg: RunConfig, harm, label
):
    sample = next(s for i in range(broken_plan.num_samples) if "breaks" in (s := broken_plan.sample(i)).uri)
    harm(Path(sample.uri), Path(broken_plan.sample(0).uri).read_bytes())
    reason = EncodeBatch(broken_plan, cfg).encode(sample.sample_id).reason
    assert sample.uri in reason
    assert reason_label(reason) == label


def test_labels_are_few():
    assert set(REASONS.values()) == LABELS
    assert reason_label("/clips/0001.mp4: something new") == "other"


@pytest.mark.parametrize("said", SAID)
def test_what_limits_and_filters_say_has_a_label(said):
    assert reason_label(said) == SAID[said]


def test_names_are_as_prometheus_wants_them():
    for name, found in DEFINITIONS.items():
        assert name.endswith("_total") == (found.kind == "counter"), name
        assert found.help


def test_metrics_are_no_burden_without_a_cluster():
    metrics = RunMetrics("alone")
    step = {"step": 1, "step_s": 1.0, "stall_fraction": 0.1, "tokens_per_s": 9.0}
    metrics.row({**step, "loss": 1.0, "loss_video": 1.0, "learning_rate": 0.1, "grad_norm": 1.0})
    metrics.row({"step": 1, "eval_video": 1.0})
    metrics.consumed([0, 1, -1], {1: "/clips/1.mp4: is not a file"})
    metrics.killed(1)
    metrics.spilled(0)
    with pytest.raises(KeyError):
        metrics.add("steps")


def test_a_row_that_was_cut_short_is_not_glued_to_the_next(tmp_path):
    first = MetricsFiles(tmp_path)
    first.write({"step": 0, "loss": 1.0})
    first.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 1, "lo')
    second = MetricsFiles(tmp_path)
    second.write({"step": 1, "loss": 0.5})
    second.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1]
