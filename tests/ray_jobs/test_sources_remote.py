"""Sources on a real S3 server give the rows that they give on a disk, and their media decode alike."""

from __future__ import annotations

import csv
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avtok.decode import decode_clip
from ray_jobs import store_clients
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources
from ray_jobs.lerobot_export import export_episodes
from ray_jobs.render import _row, render_clip
from ray_jobs.sources import SourceRow, read_sources, with_actions
from ray_jobs.stores import local_copy
from tests.ray_jobs.local_s3 import LocalS3, Proxy

CUT = {"start_s": 0.25, "end_s": 1.0, "fps": 16, "size": (64, 64), "sample_rate": 16000}


@pytest.fixture(scope="module")
def given(clip_folder: Path, tmp_path_factory) -> Path:
    """Every kind of source: clips/, clips.csv and more beside it, shards/, set/ (LeRobot)."""
    root = tmp_path_factory.mktemp("given")
    (root / "clips/deep").mkdir(parents=True)
    for name, to in {"bounce_0": "clips/a b", "bounce_1": "clips/deep/b#1", "no_sound": "clips/c"}.items():
        (root / f"{to}.mp4").write_bytes((clip_folder / f"{name}.mp4").read_bytes())
    (root / "clips/a b.txt").write_text("a ball")
    (root / "clips/c.json").write_text(json.dumps({"prompt": "quiet", "audio": "a b.mp4", "end_s": 1.5}))
    np.save(root / "clips/c.actions.npy", np.eye(3))
    rows = [
        {"video": "clips/a b.mp4", "text": "one"},
        {"video": "manifests/../clips/deep/b#1.mp4", "text": "two"},
    ]
    with (root / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["video", "text"])
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(
        pa.Table.from_pylist([row | {"actions": "clips/c.actions.npy"} for row in rows]),
        root / "clips.parquet",
    )
    (root / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "clips.json").write_text(json.dumps(rows))
    (root / "shards").mkdir()
    for i, name in enumerate(("bounce_0", "bounce_1")):
        with tarfile.open(root / f"shards/{i:02d}.tar", "w") as archive:
            archive.add(clip_folder / f"{name}.mp4", f"{i}.mp4")
            archive.add(clip_folder / f"{name}.txt", f"{i}.txt")
    (rendered := root / "rendered").mkdir()
    truths = [render_clip("pusher", i, out=str(rendered), seed=3, duration_s=1.0) for i in range(2)]
    (rendered / "manifest.jsonl").write_text("\n".join(json.dumps(_row(truth)) for truth in truths))
    export_episodes(str(rendered), root / "set")
    return root


@pytest.fixture
def stored(given: Path, s3: LocalS3) -> str:
    return s3.upload(given, "some/where")


def moved(row: SourceRow, root: str, given: Path) -> SourceRow:
    """The row as it would read on the disk."""
    places = {name: getattr(row, name).replace(root, str(given)) for name in ("uri", "audio_uri", "actions")}
    return replace(row, **places)


@pytest.mark.parametrize(
    ("source", "num_rows"),
    [
        ("clips", 3),
        ("clips/", 3),
        ("clips/a b.mp4", 1),
        ("clips.csv", 2),
        ("clips.parquet", 2),
        ("clips.jsonl", 2),
        ("clips.json", 2),
        ("shards", 2),
        ("shards/00.tar", 1),
        ("shards/{00..01}.tar", 2),
        ("set", 2),
    ],
)
def test_a_source_on_s3_gives_the_rows_of_the_same_source_on_a_disk(given, stored, source, num_rows):
    here, there = read_sources([f"{given}/{source}"]), read_sources([f"{stored}/{source}"])
    assert len(there.rows) == num_rows
    assert all(row.uri.startswith(stored) for row in there.rows)
    assert [moved(row, stored, given) for row in there.rows] == here.rows
    assert there.rejected == there.warnings == []
    for row, own in zip(there.rows, here.rows, strict=True):
        assert with_actions(row).actions == with_actions(own).actions


@pytest.mark.parametrize("source", ["clips", "clips.csv", "clips.parquet", "shards"])
def test_media_on_s3_decode_to_the_same_arrays(given, stored, source):
    here, there = read_sources([f"{given}/{source}"]).rows, read_sources([f"{stored}/{source}"]).rows
    for own, row in zip(here, there, strict=True):
        expected = decode_clip(str(local_copy(own.uri)), **CUT)
        read = decode_clip(str(local_copy(row.uri)), **CUT)
        assert read.video_THWC is not None
        assert read.video_THWC.std() > 1
        assert np.array_equal(read.video_THWC, expected.video_THWC)
        assert np.array_equal(read.audio_N, expected.audio_N)


def test_the_index_of_sources_on_s3_is_that_of_the_same_on_a_disk(given, stored, tmp_path):
    made = []
    for root in (str(given), stored):
        sources = [f"{root}/{name}" for name in ("clips", "shards", "set")]
        result = index_sources(sources, out=str(tmp_path / "m.parquet"))
        assert (result.kept, result.quarantined) == (7, [])
        rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
        made.append(
            [{name: row[name] for name in ("content_sha256", "caption", "actions", "end_s")} for row in rows]
        )
    assert made[0] == made[1]
    assert all(row["content_sha256"] for row in made[0])


def test_a_clip_that_s3_does_not_have_is_quarantined(s3: LocalS3, clip_folder, tmp_path):
    s3.put("a.mp4", (clip_folder / "bounce_0.mp4").read_bytes())
    uri = s3.put("m.csv", b"video\na.mp4\ngone.mp4\n")
    result = index_sources([uri], out=str(tmp_path / "m.parquet"))
    assert result.kept == 1
    assert result.quarantined == [
        {"uri": s3.uri("gone.mp4"), "reason": f"{s3.uri('gone.mp4')}: no such object"}
    ]


def test_a_shard_on_s3_is_listed_without_reading_its_media(s3: LocalS3, tmp_path, monkeypatch):
    (tmp_path / "big.mp4").write_bytes(b"x" * (12 << 20))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(3):
            archive.add(tmp_path / "big.mp4", f"{i}.mp4")
            archive.addfile(tarfile.TarInfo(f"{i}.txt"))
    uri = s3.put("a.tar", (tmp_path / "a.tar").read_bytes())
    proxy = Proxy(s3.address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    assert len(read_sources([uri]).rows) == 3
    proxy.close()
    ranges = [asked.removeprefix("bytes=").split("-") for _, _, asked in proxy.requests if asked]
    assert 0 < sum(int(last) - int(first) + 1 for first, last in ranges) < 5 << 20


def test_a_manifest_on_s3_may_name_media_elsewhere_but_not_outside_by_accident(s3: LocalS3):
    rows = [
        {"video": "s3://other/a.mp4"},
        {"video": "/disk/b.mp4"},
        {"video": "../c.mp4"},
        {"video": "../../../d.mp4"},
    ]
    found = read_sources([s3.put("deep/m.jsonl", "\n".join(map(json.dumps, rows)).encode())])
    assert [row.uri for row in found.rows] == ["s3://other/a.mp4", "/disk/b.mp4", s3.uri("c.mp4")]
    assert "leads out of the bucket" in found.rejected[0]["reason"]


def test_sources_on_s3_that_cannot_be_read_are_all_named(s3: LocalS3):
    s3.put("texts/a.md", b"words")
    bad = [s3.uri("gone"), "s3://no-such-bucket/clips", s3.uri("texts"), s3.put("m.csv", b"film\na.mp4\n")]
    with pytest.raises(UserError) as raised:
        read_sources(bad)
    words = [
        "no such object",
        "no such bucket",
        "no media among 1 files (.md x 1)",
        "no column names the media",
    ]
    assert len(raised.value.lines) == len(bad)
    for line, source, said in zip(raised.value.lines, bad, words, strict=True):
        assert line.startswith(f"{source}: {said}")


def test_a_store_that_does_not_answer_is_one_line(s3: LocalS3, monkeypatch):
    monkeypatch.setattr(store_clients, "BACKOFF_S", 0.01)
    monkeypatch.setattr(store_clients, "SDK_TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    with pytest.raises(UserError, match=r"^s3://.*: http://127\.0\.0\.1:2 does not answer") as raised:
        read_sources([s3.uri("clips")])
    assert len(raised.value.lines) == 1


def test_captions_that_a_store_does_not_give_leave_out_their_clips_alone(s3: LocalS3, monkeypatch):
    for i in range(30):
        s3.put(f"clips/{i:02d}.mp4", b"film")
        s3.put(f"clips/{i:02d}.txt", f"caption {i}".encode())
    proxy = Proxy(s3.address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    monkeypatch.setattr(store_clients, "BACKOFF_S", 0.01)
    passed = proxy.answer

    def refusing(asked) -> None:
        if "/07.txt" in asked.path:
            proxy.status, proxy.failures = 403, 1
        passed(asked)

    monkeypatch.setattr(proxy, "answer", refusing)
    found = read_sources([s3.uri("clips")])
    proxy.close()
    assert [row.caption for row in found.rows] == [f"caption {i}" for i in range(30) if i != 7]
    (bad,) = found.rejected
    assert bad["uri"] == s3.uri("clips/07.mp4")
    assert "07.txt: no permission" in bad["reason"]
