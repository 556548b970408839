"""An index remembers files, opens each once and in a process that can be killed, and knows what it holds."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from avtok.media import Limits, MediaInfo
from avtok.mux import write_clip
from ray_jobs import probing
from ray_jobs.data_stats import as_text, describe
from ray_jobs.data_table import as_table
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources, read_left_out, read_manifest
from ray_jobs.manifest_table import MANIFEST_SCHEMA
from ray_jobs.sources.rows import MEDIA_SUFFIXES
from ray_jobs.stores import local_copy
from tests.ray_jobs.filter_clips import RATE, melody, moving, write
from worldmodel.config import FilterConfig

GOOD = ("bounce_0.mp4", "bounce_1.mp4", "no_picture.mp4")


@pytest.fixture
def folder(clip_folder, tmp_path) -> Path:
    copy = tmp_path / "clips"
    copy.mkdir()
    for name in (*GOOD, "broken.mp4"):
        shutil.copy(clip_folder / name, copy / name)
    return copy


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the files that were opened from here on."""
    names: list[str] = []
    probe_file = probing.probe_file

    def noted(file, **given):
        names.append(Path(file.uri).name)
        return probe_file(file, **given)

    monkeypatch.setattr(probing, "probe_file", noted)
    return names


def test_a_second_index_opens_only_what_changed(folder, tmp_path, opened):
    out = str(tmp_path / "m.parquet")
    first = index_sources([str(folder)], out=out)
    before = read_manifest(out)
    assert (sorted(opened), first.reused) == (
        ["bounce_0.mp4", "bounce_1.mp4", "broken.mp4", "no_picture.mp4"],
        0,
    )
    opened.clear()
    second = index_sources([str(folder)], out=out)
    assert (opened, second.reused) == (["broken.mp4"], 3)  # what failed may work now
    assert read_manifest(out).equals(before)
    opened.clear()
    shutil.copy(folder / "no_picture.mp4", folder / "bounce_1.mp4")
    third = index_sources([str(folder)], out=out)
    assert (sorted(opened), third.reused) == (["bounce_1.mp4", "broken.mp4"], 2)
    changed = {Path(row["uri"]).name: row for row in read_manifest(out).to_pylist()}
    assert not changed["bounce_1.mp4"]["has_video"]
    assert changed["bounce_1.mp4"]["content_sha256"] == changed["no_picture.mp4"]["content_sha256"]


def test_fresh_opens_everything_and_so_does_another_version_of_the_probe(
    folder, tmp_path, opened, monkeypatch
):
    out = str(tmp_path / "m.parquet")
    index_sources([str(folder)], out=out)
    opened.clear()
    assert index_sources([str(folder)], out=out, fresh=True).reused == 0
    assert len(opened) == 4
    monkeypatch.setattr(probing, "PROBE_VERSION", "another")
    assert index_sources([str(folder)], out=out).reused == 0
    (tmp_path / "m.parquet.probes").write_bytes(b"no parquet")
    assert index_sources([str(folder)], out=out).reused == 0


def test_a_file_with_many_spans_is_opened_once(folder, tmp_path, opened):
    rows = [{"video": "clips/bounce_0.mp4", "start_s": i / 10, "end_s": i / 10 + 0.5} for i in range(10)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert index_sources([str(tmp_path / "m.jsonl")], out=str(tmp_path / "m.parquet")).kept == 10
    assert opened == ["bounce_0.mp4"]


def test_facts_of_the_probe_are_columns_and_every_fact_has_one(folder, tmp_path):
    index_sources([str(folder)], out=str(tmp_path / "m.parquet"))
    rows = {Path(row["uri"]).name: row for row in read_manifest(str(tmp_path / "m.parquet")).to_pylist()}
    clip, sound = rows["bounce_0.mp4"], rows["no_picture.mp4"]
    assert (clip["container"], clip["video_codec"], clip["audio_codec"]) == ("mov", "h264", "aac")
    assert (clip["num_frames"], clip["is_vfr"], clip["sample_rate"]) == (32, False, 16000)
    assert clip["decode_cost_s"] > sound["decode_cost_s"] > 0
    assert clip["drift_s"] < 0.1
    assert sound["loudness_lufs"] == pytest.approx(-20, abs=3)
    assert (sound["video_codec"], sound["video_start_s"]) == ("", None)
    missing = {f.name for f in fields(MediaInfo)} - set(MANIFEST_SCHEMA.names)
    assert missing == {"has_audio", "reason"}  # `note` is the reason


def test_a_picture_with_the_sound_of_another_file_has_the_facts_of_both(tmp_path):
    write(tmp_path / "a.mp4", moving(1, 50), None)
    write(tmp_path / "b.mkv", None, melody(1, 1.5))
    row = {"video": "a.mp4", "audio": "b.mkv"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    index_sources([str(tmp_path / "m.jsonl")], out=str(tmp_path / "m.parquet"))
    (kept,) = read_manifest(str(tmp_path / "m.parquet")).to_pylist()
    assert (kept["has_video"], kept["has_sound"], kept["duration_s"]) == (True, True, 2.0)
    assert (kept["video_codec"], kept["audio_codec"], kept["channels"]) == ("h264", "flac", 1)
    assert kept["av_end_s"] == pytest.approx(-0.5, abs=2e-3)
    assert kept["drift_s"] == pytest.approx(0.5, abs=2e-3)
    result = index_sources(
        [str(tmp_path / "m.jsonl"), str(tmp_path / "a.mp4")],
        out=str(tmp_path / "m.parquet"),
        filters=FilterConfig(max_drift_s=0.2),
    )
    assert [bad["reason"].split(":")[0] for bad in result.quarantined] == ["drifts by 0.500 s"]


def test_a_file_beyond_the_limits_is_quarantined_and_the_rest_is_kept(folder, tmp_path):
    write(folder / "large.mp4", moving(1, 4, (240, 320)), None)
    result = index_sources(
        [str(folder)], out=str(tmp_path / "m.parquet"), limits=Limits(max_pixels=200 * 200)
    )
    reasons = {Path(bad["uri"]).name: bad["reason"] for bad in result.quarantined}
    assert result.kept == 3
    assert "limits.max_pixels=40000" in reasons["large.mp4"]


def test_media_of_a_store_are_indexed_by_their_address(folder, tmp_path):
    """A tar member: its bytes lie in another file, and the reason names the member and not the copy."""
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("bounce_0.mp4", "broken.mp4"):
            tar.add(folder / name, f"{name.partition('.')[0]}.mp4")
    result = index_sources([str(tmp_path / "shard.tar")], out=str(tmp_path / "m.parquet"))
    (kept,) = read_manifest(result.manifest).to_pylist()
    assert kept["uri"].startswith(f"{tmp_path / 'shard.tar'}#")
    (bad,) = result.quarantined
    assert bad["reason"].startswith(bad["uri"])
    assert str(local_copy(bad["uri"])) not in bad["reason"]


@pytest.mark.ray
def test_filters_give_the_same_rows_as_ray_tasks(ray_cluster, folder, tmp_path):
    assert ray.is_initialized()
    write(folder / "copy.webm", moving(1, 50), melody(1, 4.0)[: 2 * RATE])
    write(folder / "shots.mp4", np.concatenate([moving(1, 50), moving(2, 50)]), melody(1, 4.0))
    filters = FilterConfig(shots=True, drop=("duplicate", "static", "silent"))
    spread = index_sources([str(folder)], out=str(tmp_path / "ray.parquet"), filters=filters)
    ray.shutdown()
    alone = index_sources([str(folder)], out=str(tmp_path / "alone.parquet"), filters=filters)
    assert pq.read_table(spread.manifest).equals(pq.read_table(alone.manifest))
    assert read_left_out(spread.manifest) == read_left_out(alone.manifest)
    assert any("near-duplicate" in bad["reason"] for bad in alone.quarantined)


def test_stats_say_hours_rates_labels_and_reasons(folder, tmp_path):
    write_clip(folder / "fast.mp4", moving(1, 60, (96, 128)), None, fps=Fraction(60), sample_rate=16000)
    (folder / "fast.txt").write_text("balls")
    index_sources([str(folder)], out=str(tmp_path / "m.parquet"))
    facts = describe(str(tmp_path / "m.parquet"))
    assert (facts["clips"], facts["with_caption"], facts["quarantined"]) == (4, 1, 1)
    assert facts["hours"] == pytest.approx((2 + 2 + 2 + 1) / 3600, rel=0.02)
    assert facts["frames_per_s"]["most"] == pytest.approx(60)
    assert facts["frames_per_s"]["median"] == pytest.approx(16)
    assert facts["picture_codecs"] == {"h264": 3}
    assert facts["quarantine_by_kind"] == {"not_media": 1}
    assert 0 < facts["core_hours_to_decode"] < facts["hours"]
    json.dumps(facts)
    text = as_text(facts)
    assert "picture codecs: h264 3" in text
    assert "quarantine by kind: not_media 1" in text
    table = as_table(str(tmp_path / "m.parquet"))
    assert "| broken.mp4 | **left out**: cannot be opened as media" in table
    assert "| fast.mp4 | 1.00 s · 128x96 at 60 frames/s, h264 · no sound |" in table


def test_a_manifest_of_an_older_index_is_refused_with_the_command_that_renews_it(manifest, tmp_path):
    table = pq.read_table(manifest).drop_columns(["drift_s"])
    pq.write_table(table, tmp_path / "old.parquet")
    with pytest.raises(UserError, match="lacks the columns drift_s; run: worldmodel index"):
        read_manifest(str(tmp_path / "old.parquet"))


# Real files.

LEFT_OUT = {
    "reproduce_seek_bug.wav": "holds only silence, and no picture",
    "sample_fragmented_clearkey.mp4": "it is encrypted",
    "sample_malformed_free_box.mp4": "its box 'free' at byte 32 says that it has 3 bytes",
    "zero_length.webm": "it is empty",
}


@pytest.mark.media
def test_every_real_file_is_usable_or_left_out_for_the_right_reason(media, tmp_path):
    out = str(tmp_path / "m.parquet")
    index_sources([str(media)], out=out)
    reasons = {Path(bad["uri"]).name: bad["reason"] for bad in read_left_out(out)}
    assert set(reasons) == set(LEFT_OUT)
    assert all(LEFT_OUT[name] in reason for name, reason in reasons.items())
    rows = read_manifest(out).to_pylist()
    given = {path for path in media.rglob("*") if path.suffix.lower() in MEDIA_SUFFIXES}
    assert len({row["uri"] for row in rows}) + len(LEFT_OUT) == len(given) > 150
    assert all(row["duration_s"] > 0 and row["decode_cost_s"] > 0 for row in rows)
    assert all(row["has_video"] or row["has_sound"] for row in rows)
