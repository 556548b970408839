"""LeRobot data sets: what `worldmodel export-lerobot` wrote reads back, and what else is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avtok.decode import decode_clip
from avtok.evaluate import psnr_db
from ray_jobs import lerobot_writer
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources
from ray_jobs.lerobot_export import export_episodes
from ray_jobs.lerobot_files import Limits
from ray_jobs.lerobot_writer import PICTURE
from ray_jobs.render import _row, render_clip
from ray_jobs.sources import read_sources, with_actions
from worldmodel.worlds.truth import Truth

FPS, RATE = 16, 16000
LENGTHS_S = (2.0, 3.0, 2.0)


@pytest.fixture(scope="module")
def pusher(tmp_path_factory) -> tuple[Path, list[Truth]]:
    folder = tmp_path_factory.mktemp("pusher")
    truths = [
        render_clip("pusher", index, out=str(folder), seed=3, duration_s=length_s)
        for index, length_s in enumerate(LENGTHS_S)
    ]
    lines = [json.dumps(_row(truth)) for truth in truths[:2]]
    lines.append(json.dumps(_row(truths[2]) | {"caption": ""}))
    (folder / "manifest.jsonl").write_text("\n".join(lines), "utf-8")
    return folder, truths


@pytest.fixture(scope="module")
def exported(pusher, tmp_path_factory) -> Path:
    """Of two video files and two data files."""
    out = tmp_path_factory.mktemp("lerobot") / "set"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lerobot_writer, "LONGEST_VIDEO_S", 5)
        patched.setattr(lerobot_writer, "MIB", 3 << 17)
        export_episodes(str(pusher[0]), out, limits=Limits(data_mib=1, files=2))
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """One that a test may break."""
    shutil.copytree(exported, tmp_path / "set")
    return tmp_path / "set"


def decoded(uri: str, start_s: float, end_s: float):
    return decode_clip(uri, start_s=start_s, end_s=end_s, fps=FPS, size=(64, 64), sample_rate=RATE)


def change_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_episodes_read_back_with_their_spans_captions_actions_pictures_and_sound(pusher, exported: Path):
    folder, truths = pusher
    found = read_sources([str(exported)])
    assert found.warnings == found.rejected == []
    assert [row.caption for row in found.rows] == [truths[0].caption, truths[1].caption, ""]
    assert [(row.start_s, row.end_s) for row in found.rows] == [(0.0, 2.0), (2.0, 5.0), (0.0, 2.0)]
    assert len({row.uri for row in found.rows}) == 2
    assert len({row.actions.partition("#")[0] for row in found.rows}) == 2
    assert [row.group for row in found.rows] == [f"set/episode-{i}" for i in range(3)]
    for row, truth, length_s in zip(found.rows, truths, LENGTHS_S, strict=True):
        assert row.end_s is not None
        actions_FA = np.array(json.loads(with_actions(row).actions))
        assert truth.actions_T2 is not None
        assert np.array_equal(actions_FA.astype(np.float32), truth.actions_T2.round(6).astype(np.float32))
        given, read = decoded(str(folder / truth.clip), 0, length_s), decoded(row.uri, row.start_s, row.end_s)
        assert psnr_db(given.video_THWC, read.video_THWC) > 32
        assert np.corrcoef(given.audio_N, read.audio_N)[0, 1] > 0.9


def test_the_index_of_a_data_set_holds_each_episode_in_a_group_of_its_own(exported: Path, tmp_path: Path):
    result = index_sources([str(exported)], out=str(tmp_path / "m.parquet"))
    assert result.quarantined == []
    rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert len(rows) == 3
    assert len({row["group"] for row in rows}) == 3
    assert all(len(json.loads(row["actions"])) == 16 * (row["end_s"] - row["start_s"]) for row in rows)


def test_frames_of_an_episode_are_put_in_their_order(copy: Path):
    rows = read_sources([str(copy)]).rows
    expected = [with_actions(row).actions for row in rows]
    for path in (copy / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows))), path)
    assert [with_actions(row).actions for row in rows] == expected


def second_camera(root: Path, *, is_depth_map: bool) -> str:
    """A second video feature in front of the first, with the same files under another name."""
    camera = "observation.images.wrist"
    info = json.loads((root / "meta/info.json").read_text())
    feature = info["features"][PICTURE] | {"info": {"video.is_depth_map": is_depth_map}}
    change_info(root, features={camera: feature} | info["features"])
    shutil.copytree(root / "videos" / PICTURE, root / "videos" / camera)
    for path in (root / "meta/episodes").rglob("*.parquet"):
        table = pq.read_table(path)
        for name in table.column_names:
            if name.startswith(f"videos/{PICTURE}/"):
                table = table.append_column(name.replace(PICTURE, camera), table[name])
        pq.write_table(table, path)
    return camera


def test_of_several_cameras_the_first_is_taken_unless_one_is_named(copy: Path):
    camera = second_camera(copy, is_depth_map=False)
    found = read_sources([str(copy)])
    assert all(camera in row.uri for row in found.rows)
    assert found.warnings == [
        f"{copy}: has 2 cameras, and {camera} is taken; for another one: {copy}?camera={PICTURE}"
    ]
    named = read_sources([f"{copy}?camera={PICTURE}"])
    assert all(PICTURE in row.uri for row in named.rows)
    assert len(named.rows) == 3
    assert named.warnings == []
    with pytest.raises(UserError, match=rf"\?camera=left: no such camera; there is {camera}, {PICTURE}"):
        read_sources([f"{copy}?camera=left"])


def test_a_depth_map_is_not_taken_for_a_picture(copy: Path):
    second_camera(copy, is_depth_map=True)
    found = read_sources([str(copy)])
    assert all(PICTURE in row.uri for row in found.rows)
    assert found.warnings == []


def test_a_data_set_without_actions_has_none(copy: Path):
    info = json.loads((copy / "meta/info.json").read_text())
    del info["features"]["action"]
    change_info(copy, **info)
    (copy / "meta/info.json").write_text(json.dumps(info))
    assert [row.actions for row in read_sources([str(copy)]).rows] == ["", "", ""]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"codebase_version": "v2.1"},
            r"is a LeRobot data set of v2\.1; v3 is read, and LeRobot itself converts",
        ),
        ({"features": {"action": {"dtype": "float32"}}}, "the LeRobot data set has no video"),
        ({"features": {"front": {"dtype": "image"}}}, "no video; front: stored as pictures inside Parquet"),
        ({"video_path": None}, "lacks video_path"),
    ],
)
def test_data_sets_that_cannot_be_read_say_why(copy: Path, changes, message):
    change_info(copy, **changes)
    with pytest.raises(UserError, match=message) as raised:
        read_sources([str(copy)])
    assert len(raised.value.lines) == 1


@pytest.mark.parametrize("content", ["{oops", "[]", "{}"])
def test_an_info_file_that_is_none_is_an_error(copy: Path, content: str):
    (copy / "meta/info.json").write_text(content)
    with pytest.raises(UserError, match=r"info\.json: is not that of a LeRobot data set"):
        read_sources([str(copy)])


def test_an_episode_that_lacks_a_field_and_one_without_frames_are_rows_with_reasons(
    copy: Path, tmp_path: Path
):
    path = copy / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1][f"videos/{PICTURE}/to_timestamp"] = 0.0
    pq.write_table(pa.Table.from_pylist(rows), path)
    for data in (copy / "data").rglob("*.parquet"):
        table = pq.read_table(data)
        pq.write_table(table.filter(pa.compute.not_equal(table["episode_index"], 2)), data)
    result = index_sources([str(copy)], out=str(tmp_path / "m.parquet"))
    assert result.kept == 1
    reasons = [bad["reason"] for bad in result.quarantined]
    assert "end after it begins" in reasons[0]
    assert "holds no frames of episode 2" in reasons[1]
