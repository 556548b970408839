"""Clips that are taken out leave no trace in manifests, plans, caches and rollouts; ledgers still add up."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_jobs.accounting import Ledger
from ray_jobs.errors import JobError, UserError
from ray_jobs.forget import described, forget
from ray_jobs.forget.traces import cache_trace
from ray_jobs.index import index_sources
from ray_jobs.plan import Plan, make_plan
from ray_jobs.run_folder import RunFolder
from ray_jobs.stages import EncodeBatch
from ray_jobs.tombstones import read_tombstones
from worldmodel.load_config import dump_config
from worldmodel.reasons import FORGOTTEN

GONE, KEPT = "bounce_1.mp4", "bounce_2.mp4"


@pytest.fixture
def run(tmp_path, clip_folder, cfg):
    """A run whose two checkpoints consumed all but the last micro-batch, with its cache and rollouts."""
    for name in (GONE, KEPT, "bounce_3.mp4"):
        shutil.copy(clip_folder / name, tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}")
    shutil.copy(tmp_path / GONE, tmp_path / "copy_of_it.mp4")  # the same bytes under another name
    manifest = tmp_path / "m.parquet"
    index_sources([str(tmp_path)], out=str(manifest))
    cfg = cfg.model_copy(
        update={
            "storage": str(tmp_path / "runs"),
            "data": cfg.data.model_copy(update={"batch_clips": 2, "cache": str(tmp_path / "cache")}),
        }
    )
    folder = RunFolder(cfg)
    folder.make()
    shutil.copy(manifest, folder.manifests["clips"])
    plan = make_plan(str(manifest), cfg)
    plan.save(folder.plan)
    folder.config.write_text(dump_config(cfg))
    encode = EncodeBatch(plan, cfg)
    ledger = Ledger(plan.hash)
    for position in range(plan.num_batches_per_epoch - 1):
        epoch, batch_id, ids = plan.batch_at(position)
        encode.encode_batch(epoch, batch_id, ids)
        ledger.add(epoch, ids, {})
        ledger.position = position + 1
        checkpoint = folder.path / "checkpoints" / f"step-{position:07d}-001"
        checkpoint.mkdir(parents=True)
        ledger.to_files(checkpoint, rank=0)
    folder.export.mkdir()
    folder.rollouts.mkdir()
    rows = [{"sample_id": i, "source": str(tmp_path / name)} for i, name in enumerate((GONE, KEPT))]
    (folder.rollouts / "rollouts.json").write_text(json.dumps(rows))
    for row in rows:
        (folder.rollouts / f"{row['sample_id']:06d}_truth.mp4").write_bytes(b"film")
    (folder.path / "report.html").write_text("pictures")
    return tmp_path, manifest, folder, cfg, plan


def forget_it(run, *names, **more):
    place, manifest, *_ = run
    (place / "ids.txt").write_text("\n".join(names) + "\n")
    return forget(str(manifest), ids=place / "ids.txt", runs=[place / "runs"], **more)


def everything(place: Path) -> bytes:
    """All bytes under a folder that are not media, and the report and tombstones of forgetting."""
    files = [f for f in place.rglob("*") if f.is_file() and f.suffix not in (".mp4", ".txt")]
    return b"".join(f.name.encode() + f.read_bytes() for f in files if "forgotten" not in f.name)


def test_a_forgotten_clip_and_its_copy_leave_every_place_and_the_others_stay(run):
    place, manifest, folder, _, plan = run
    gone_ids = [i for i in range(plan.num_samples) if plan.sample(i).uri.endswith((GONE, "copy_of_it.mp4"))]
    content = plan.sample(gone_ids[0]).content_sha256
    cached_before = len(list((place / "cache").rglob("*.safetensors")))
    report = forget_it(run, str(place / GONE))
    assert set(report["removed"]) == {"manifest", "plan", "cache", "rollouts"}
    assert report["removed"]["plan"][str(folder.plan)] == len(gone_ids) == 4
    assert sum(report["removed"]["manifest"].values()) == 4  # two rows in each of two manifests
    assert 0 < cached_before - len(list((place / "cache").rglob("*.safetensors"))) <= 2
    assert {Path(uri).name for uri in pq.read_table(manifest)["uri"].to_pylist()} == {KEPT, "bounce_3.mp4"}
    assert content.encode() not in everything(place)
    assert GONE.encode() not in everything(place)
    assert KEPT.encode() in everything(place)
    assert [path.name for path in folder.rollouts.iterdir() if path.suffix == ".mp4"] == ["000001_truth.mp4"]
    assert not (folder.path / "report.html").exists()
    assert (place / GONE).exists()
    assert "media files themselves are untouched" in described(report)


def test_what_has_seen_the_clip_is_listed_and_nothing_else(run):
    place, _, folder, _, plan = run
    gone = {i for i in range(plan.num_samples) if plan.sample(i).uri.endswith((GONE, "copy_of_it.mp4"))}
    seen, expected = set(), {}
    for position in range(plan.num_batches_per_epoch - 1):
        seen |= {int(i) for i in plan.batch_at(position)[2]} & gone
        if seen:
            expected[str(folder.path / "checkpoints" / f"step-{position:07d}-001")] = sorted(seen)
    consumed_by = forget_it(run, str(place / GONE))["consumed_by"]
    assert {found["checkpoint"]: found["samples"] for found in consumed_by[:-1]} == expected
    assert consumed_by[-1]["export"] == str(folder.export)


def test_training_goes_on_with_the_same_positions_and_meets_a_forgotten_clip_as_one_without_content(run):
    _, _, folder, cfg, plan = run
    forget_it(run, plan.sample(0).content_sha256[:20])
    after = Plan.load(folder.plan)
    assert after.hash == plan.hash
    last = sorted((folder.path / "checkpoints").iterdir())[-1]
    Ledger.from_files(last).check(after)
    for position in range(plan.num_batches_per_epoch):
        assert np.array_equal(after.batch_at(position)[2], plan.batch_at(position)[2])
    encode = EncodeBatch(after, cfg)
    forgotten = after.forgotten_ids.tolist()
    assert forgotten
    assert [encode.encode(i).reason for i in forgotten] == [FORGOTTEN] * len(forgotten)
    assert after.sample(forgotten[0]).caption == after.sample(forgotten[0]).uri == ""
    others = [i for i in range(plan.num_samples) if i not in forgotten]
    assert all(after.sample(i) == plan.sample(i) for i in others)
    ledger = Ledger(after.hash)
    ledger.add(0, forgotten, dict.fromkeys(forgotten, FORGOTTEN))
    assert ledger.quarantine_rate(after) == 0


def test_only_the_span_of_a_row_is_forgotten_and_doing_it_again_finds_nothing_more(run, tmp_path):
    place, *_ = run
    rows = [
        {"video": str(place / KEPT), "id": "first", "end_s": 1.0},
        {"video": str(place / KEPT), "id": "second", "start_s": 1.0},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    cuts = tmp_path / "cuts.parquet"
    index_sources([str(tmp_path / "rows.json")], out=str(cuts))
    (tmp_path / "ids").write_text("first\n")
    report = forget(str(cuts), ids=tmp_path / "ids", runs=[place / "runs"])
    assert pq.read_table(cuts)["id"].to_pylist() == ["second"]
    assert sum(report["removed"]["plan"].values()) == 1  # of the two cuts of that file
    again = forget(str(cuts), ids=tmp_path / "ids", runs=[place / "runs"])
    assert again["removed"] == {}
    assert [target.name for target in read_tombstones(cuts)] == ["first"]


def test_an_index_of_the_same_sources_leaves_out_what_was_forgotten(run):
    place, manifest, *_ = run
    forget_it(run, str(place / GONE))
    result = index_sources([str(place)], out=str(manifest))
    assert {Path(row["uri"]).name for row in result.quarantined if FORGOTTEN in row["reason"]} == {
        GONE,
        "copy_of_it.mp4",
    }
    assert result.kept == 2


def test_a_trace_that_stays_is_an_error_and_unknown_ids_change_nothing(run, monkeypatch):
    place, *_ = run
    before = everything(place)
    with pytest.raises(UserError, match="nobody: no clip of the manifest"):
        forget_it(run, "nobody", str(place / GONE))
    assert everything(place) == before
    kept = cache_trace(place / "cache")
    monkeypatch.setattr(
        "ray_jobs.forget.cache_trace", lambda folder: type(kept)("cache", folder, kept.count, lambda t: 0)
    )
    with pytest.raises(JobError, match=r"traces are left: .*cache: [12]"):
        forget_it(run, str(place / GONE))
    monkeypatch.undo()
    assert (
        forget_it(run, str(place / GONE))["left"] == 0
    )  # by the same ids, though the manifest has them no more
