"""Manifests of every kind, folders with what stands beside media, and what is wrong with them."""

from __future__ import annotations

import csv
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from avtok.decode import decode_clip
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources
from ray_jobs.sources import RowError, SourceRow, read_sources, with_actions
from ray_jobs.sources.actions import read_actions


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


WRITERS = {
    "clips.csv": write_csv,
    "clips.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "clips.jsonl": write_lines,
    "clips.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("column", ["video", "video_path", "media_path", "path"])
def test_every_manifest_format_and_alias_gives_the_same_row(tmp_path, clip_folder, name, column):
    relative = os.path.relpath(clip_folder / "bounce_0.mp4", tmp_path)
    row = {column: relative, "prompt": "a ball", "start_s": 0.5, "end_s": 1.5, "id": "7", "group": "a"}
    WRITERS[name](tmp_path / name, [row | {"mood": "blue", "scenario": "basic", "seed": 3}])
    found = read_sources([str(tmp_path / name)])
    uri = str(clip_folder / "bounce_0.mp4")
    assert found.rows == [SourceRow(uri, caption="a ball", group="a", id="7", start_s=0.5, end_s=1.5)]
    assert found.rejected == []
    assert found.warnings == [f"{tmp_path / name}: columns that are not used: mood"]


def test_speech_and_nested_actions_are_read_from_text_and_from_lists(tmp_path):
    cues, actions = [{"start": 0, "end": 1, "speaker": "a", "text": "hello"}], [[0.0, 1.0], [1.0, 0.0]]
    row = {"path": "a.mp4", "speech": [cues[0] | {"shoe": 44}], "actions": actions, "transcript": "hello"}
    for name in ("clips.json", "clips.jsonl", "clips.parquet"):
        WRITERS[name](tmp_path / name, [row])
    write_csv(tmp_path / "clips.csv", [row | {"speech": json.dumps(cues), "actions": json.dumps(actions)}])
    for name in WRITERS:
        (read,) = read_sources([str(tmp_path / name)]).rows
        assert json.loads(read.speech_json) == cues
        assert json.loads(read.actions) == actions
        assert read.transcript == "hello"


def test_what_worldmodel_index_wrote_reads_back_without_a_warning(manifest, clip_folder):
    found = read_sources([str(manifest)])
    assert found.warnings == found.rejected == []
    captions = {Path(row.uri).name: row.caption for row in found.rows}
    assert captions["bounce_0.mp4"] == (clip_folder / "bounce_0.txt").read_text()


def test_a_line_separator_inside_a_caption_does_not_end_the_line(tmp_path):
    write_lines(tmp_path / "m.jsonl", [{"video": "a.mp4", "caption": "one\u2028two\x0bthree"}])
    assert [row.caption for row in read_sources([str(tmp_path / "m.jsonl")]).rows] == [
        "one\u2028two\x0bthree"
    ]


def test_line_that_is_not_json_and_a_clip_listed_twice_are_rows_with_reasons(tmp_path):
    line = json.dumps({"video": "a.mp4"})
    (tmp_path / "m.jsonl").write_text("\n".join([line, "{oops", "[1]", "", line, "{}"]))
    found = read_sources([str(tmp_path / "m.jsonl")])
    assert [row.uri for row in found.rows] == [str(tmp_path / "a.mp4")]
    reasons = {bad["uri"].rpartition("/")[2]: bad["reason"] for bad in found.rejected}
    assert sorted(reasons) == ["a.mp4", "m.jsonl:2", "m.jsonl:3", "m.jsonl:6"]
    assert "listed more than once" in reasons["a.mp4"]
    assert "names no media" in reasons["m.jsonl:6"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"start_s": "soon"}, "start_s='soon' is not a number"),
        ({"start_s": 1.0, "end_s": 0.5}, "end after it begins"),
        ({"start_s": float("nan")}, "finite"),
        ({"actions": [[1, 2], [3]]}, "rows of"),
        ({"actions": [["left"]]}, "finite numbers"),
        ({"actions": [1.0, 2.0]}, "F rows"),
        ({"actions": "left.csv"}, "a file of them (.npy, .npz, .parquet, .json)"),
        ({"speech": "hello"}, "speech must be a list"),
        ({"video": ""}, "names no media"),
    ],
)
def test_a_bad_row_is_left_out_with_its_reason_and_the_rest_is_kept(tmp_path, fields, reason):
    write_lines(tmp_path / "m.jsonl", [{"video": "a.mp4"} | fields, {"video": "b.mp4"}])
    found = read_sources([str(tmp_path / "m.jsonl")])
    assert [Path(row.uri).name for row in found.rows] == ["b.mp4"]
    (bad,) = found.rejected
    assert bad["uri"].endswith("m.jsonl:1")
    assert reason in bad["reason"]


def test_user_error_names_every_source_that_cannot_be_read(tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / "texts" / f"{i}.md").write_text("words")
    (tmp_path / "m.csv").write_text("film,year\na.mp4,1940\n")
    (tmp_path / "m.json").write_text("[oops")
    (tmp_path / "list.json").write_text('{"video": "a.mp4"}')
    (tmp_path / "m.parquet").write_bytes(b"no table")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    (tmp_path / "a.doc").write_bytes(b"")
    expected = {
        "gone": "no such file",
        "nothing": "empty",
        "texts": "no media among 3 files (.md x 3)",
        "m.csv": "no column names the media; it has film, year; use one of video, video_path",
        "m.json": "does not read as json",
        "list.json": "a JSON manifest is a list of objects, got dict",
        "m.parquet": "does not read as parquet",
        "empty.jsonl": "has no rows",
        "m.jsonl": "does not read as jsonl",
        "a.tar.gz": "a compressed archive cannot be read by byte range",
        "a.doc": ".doc is neither media nor a manifest",
    }
    with pytest.raises(UserError) as raised:
        read_sources([str(tmp_path / name) for name in expected] + ["http://host/clips"])
    lines = raised.value.lines
    assert len(lines) == len(expected) + 1
    for line, (name, words) in zip(lines, expected.items(), strict=False):
        assert line.startswith(str(tmp_path / name))
        assert words in line
    assert lines[-1] == "http://host/clips: http:// is not read; give a path, s3:// or gs://"
    assert raised.value.exit_code == 2
    with pytest.raises(UserError, match="no source given"):
        read_sources([])


def test_actions_in_files_are_read_when_they_are_needed(tmp_path):
    actions_FA = np.array([[0.1, 1], [0.2, 0]], np.float32)
    np.save(tmp_path / "a.npy", actions_FA)
    np.savez(tmp_path / "a.npz", actions=actions_FA, reward=np.zeros(2))
    np.savez(tmp_path / "one.npz", told=actions_FA)
    (tmp_path / "a.json").write_text(json.dumps({"actions": [[0.1, 1], [0.2, 0]]}))
    table = pa.table({"action": pa.array(actions_FA.tolist(), pa.list_(pa.float32())), "reward": [0, 0]})
    pq.write_table(table, tmp_path / "a.parquet")
    names = ["a.npy", "a.npz", "one.npz", "a.json", "a.parquet"]
    write_lines(
        tmp_path / "m.jsonl", [{"video": f"{i}.mp4", "actions": name} for i, name in enumerate(names)]
    )
    rows = read_sources([str(tmp_path / "m.jsonl")]).rows
    assert [row.actions for row in rows] == [str(tmp_path / name) for name in names]
    assert max(len(pickle.dumps(row)) for row in rows) < 500
    for row in rows:
        assert with_actions(row).actions == "[[0.1, 1.0], [0.2, 0.0]]"  # and not 0.10000000149011612
    plain = SourceRow("a.mp4", actions="[[1.0]]")
    assert with_actions(plain) is plain


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.npy", b"no array", "does not read as actions"),
        ("a.npy", np.zeros((2, 2, 2)), r"got shape \[2, 2, 2\]"),
        ("a.npy", np.zeros((0, 2)), r"got shape \[0, 2\]"),
        ("a.npy", np.array([["up"]]), "of <U2"),
        ("a.npy", np.array([[np.nan]]), "finite"),
        ("a.npy", np.array([{}], dtype=object), "does not read as actions"),
        ("a.npz", b"PK", "does not read as actions"),
        ("a.json", b"{}", "F rows"),
        ("a.json", b"[[1], [1, 2]]", "rows of"),
        ("a.parquet", b"PAR1", "does not read as actions"),
        ("gone.npy", None, "no such file"),
    ],
)
def test_actions_that_do_not_read_say_why(tmp_path, name, content, reason):
    if isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception, match=reason) as raised:
        read_actions(str(tmp_path / name))
    assert isinstance(raised.value, RowError) or content is None
    assert "\n" not in str(raised.value)


def test_an_archive_of_actions_that_unpacks_to_much_is_not_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", actions=np.zeros((1 << 24, 1)))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 20
    with pytest.raises(RowError, match="the actions of a clip are at most"):
        read_actions(str(tmp_path / "bomb.npz"))


def test_a_folder_takes_captions_fields_and_actions_from_beside_its_media(tmp_path):
    for name in ("a.mp4", "deep/b.webm", "deep/c.png", "d.flac", "notes.md", ".hidden.mp4", ".cache/e.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.txt").write_text(" a ball\n")
    (tmp_path / "a.json").write_text(
        json.dumps({"text": "not this", "start_s": 1, "license": "CC0", "mood": 1})
    )
    np.save(tmp_path / "a.actions.npy", np.ones((3, 2)))
    (tmp_path / "deep/b.json").write_text(json.dumps({"prompt": "a cube", "audio": "../d.flac"}))
    (tmp_path / "deep/c.json").write_text("[1, 2]")
    found = read_sources([str(tmp_path)])
    place = str(tmp_path)
    assert found.rows == [
        SourceRow(
            f"{place}/a.mp4", caption="a ball", license="CC0", actions=f"{place}/a.actions.npy", start_s=1.0
        ),
        SourceRow(f"{place}/d.flac"),
        SourceRow(f"{place}/deep/b.webm", audio_uri=f"{place}/d.flac", caption="a cube"),
        SourceRow(f"{place}/deep/c.png"),
    ]
    assert found.warnings == [f"{place}: columns that are not used: mood, (JSON that is no object)"]
    assert read_sources([f"{place}/a.mp4"]).rows == found.rows[:1]


def test_a_broken_file_beside_media_leaves_out_that_clip_alone(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.json").write_text("{oops")
    (tmp_path / "b.json").write_text('{"end_s": -1}')
    found = read_sources([str(tmp_path)])
    assert [Path(row.uri).name for row in found.rows] == ["c.mp4"]
    reasons = [bad["reason"] for bad in found.rejected]
    assert "does not read as JSON" in reasons[0]
    assert "end after it begins" in reasons[1]


STILLS = ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"]


def test_pictures_of_every_kind_are_clips_and_a_photo_is_turned_as_its_exif_says(tmp_path):
    (tmp_path / "stills").mkdir()
    picture_HWC = np.zeros((48, 64, 3), np.uint8)
    picture_HWC[:, :32] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for suffix in STILLS:
        Image.fromarray(picture_HWC).save(tmp_path / f"stills/a.{suffix}")
    Image.fromarray(picture_HWC).save(tmp_path / "stills/photo.jpg", exif=exif)
    result = index_sources([str(tmp_path / "stills")], out=str(tmp_path / "m.parquet"))
    assert result.quarantined == []
    rows = {Path(row["uri"]).name: row for row in pq.read_table(tmp_path / "m.parquet").to_pylist()}
    photo = rows.pop("photo.jpg")
    assert (photo["width"], photo["height"]) == (48, 64)
    assert set(rows) == {f"a.{suffix}" for suffix in STILLS}
    assert {(row["width"], row["height"], row["duration_s"]) for row in rows.values()} == {(64, 48, 0.0)}
    cut = {"start_s": 0.0, "end_s": 0.5, "fps": 8, "size": (64, 48), "sample_rate": 16000}
    video_THWC = decode_clip(photo["uri"], **cut).video_THWC
    assert video_THWC is not None
    assert len(video_THWC) == 4
    assert video_THWC[3, 5, 24, 0] > 200  # red is above now
    assert video_THWC[3, 58, 24, 0] < 50
