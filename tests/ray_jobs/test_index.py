import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from avtok.mux import write_clip
from ray_jobs.data_stats import describe
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources


def rows_of(manifest):
    return pq.read_table(manifest).to_pylist()


def test_folder_keeps_whole_media_and_quarantines_broken_ones(manifest, clip_folder):
    by_name = {Path(row["uri"]).name: row for row in rows_of(manifest)}
    assert set(by_name) == {p.name for p in clip_folder.glob("*.mp4")} - {"broken.mp4", "empty.mp4"}
    bounce = by_name["bounce_0.mp4"]
    assert bounce["caption"] == (clip_folder / "bounce_0.txt").read_text()
    assert (bounce["has_video"], bounce["has_sound"], bounce["width"], bounce["height"]) == (
        True,
        True,
        64,
        64,
    )
    assert bounce["duration_s"] == pytest.approx(2.0, abs=0.01)
    assert not by_name["no_sound.mp4"]["has_sound"]
    assert not by_name["no_picture.mp4"]["has_video"]
    lines = (manifest.parent / "manifest.parquet.quarantine.jsonl").read_text().splitlines()
    reasons = {Path(row["uri"]).name: row["reason"] for row in map(json.loads, lines)}
    assert set(reasons) == {"broken.mp4", "empty.mp4"}
    assert all(reasons.values())


def test_describe_counts_what_the_manifest_holds(manifest):
    about = describe(str(manifest))
    assert (about["clips"], about["quarantined"]) == (9, 2)
    assert (about["with_sound"], about["without_picture"]) == (7, 1)
    assert about["sizes"] == {"64x64": 8}
    assert about["hours"] == pytest.approx((7 * 2.0 + 1.0 + 0.625) / 3600, rel=0.01)
    assert sum(about["quarantine_by_reason"].values()) == 2


def test_speech_and_actions_reach_the_manifest_as_json(tmp_path, clip_folder):
    row = {
        "path": str(clip_folder / "bounce_0.mp4"),
        "speech": [{"start": 0, "end": 1, "speaker": "a", "text": "hello", "shoe": 44}],
        "actions": [[0, 1], [1, 0]],
        "transcript": "hello",
        "license": "CC0",
    }
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    index_sources([str(tmp_path / "m.jsonl")], out=str(tmp_path / "m.parquet"))
    (kept,) = rows_of(tmp_path / "m.parquet")
    assert json.loads(kept["speech_json"]) == [{"start": 0, "end": 1, "speaker": "a", "text": "hello"}]
    assert json.loads(kept["actions"]) == [[0.0, 1.0], [1.0, 0.0]]
    assert (kept["transcript"], kept["license"]) == ("hello", "CC0")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"start_s": "soon"}, "start_s='soon' is not a number"),
        ({"start_s": 1.0, "end_s": 0.5}, "end after it begins"),
        ({"start_s": float("nan")}, "finite"),
        ({"actions": [[1, 2], [3]]}, "rows of"),
        ({"actions": [["left"]]}, "finite numbers"),
        ({"speech": "hello"}, "speech must be a list"),
        ({"start_s": 60.0}, "past the end"),
        ({"audio": "no_such_sound.wav"}, "no_such_sound.wav"),
        ({"video": ""}, "names no media"),
        ({"video": "no_such_file.mp4"}, "no_such_file.mp4"),
    ],
)
def test_bad_row_is_quarantined_with_its_reason_and_the_rest_is_kept(tmp_path, clip_folder, fields, reason):
    good = {"video": str(clip_folder / "bounce_0.mp4")}
    lines = [json.dumps(good | fields), json.dumps({"video": str(clip_folder / "bounce_1.mp4")})]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    result = index_sources([str(tmp_path / "m.jsonl")], out=str(tmp_path / "m.parquet"))
    assert result.kept == 1
    (bad,) = result.quarantined
    assert reason in bad["reason"]


def test_a_silent_file_without_a_picture_is_quarantined(tmp_path):
    write_clip(tmp_path / "hush.mp4", None, np.zeros(16000, np.float32), fps=16, sample_rate=16000)
    with pytest.raises(UserError, match="only silence"):
        index_sources([str(tmp_path)], out=str(tmp_path / "m.parquet"))


def test_index_of_only_broken_files_is_a_user_error_with_reasons(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    with pytest.raises(UserError, match=r"none of 1 clips can be used(.|\n)*bad\.mp4"):
        index_sources([str(tmp_path / "bad.mp4")], out=str(tmp_path / "m.parquet"))
    assert not (tmp_path / "m.parquet").exists()
