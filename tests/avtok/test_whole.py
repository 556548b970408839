"""A file that holds less than it declares says so; a whole one says nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from avtok.decode import probe
from benchmarks.makers.small_files import KINDS, write_small_files


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in write_small_files(tmp_path_factory.mktemp("whole"))}


def reason_of(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return probe(str(path)).reason


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_whole_file_gives_no_reason(whole_files, tmp_path, kind):
    assert reason_of(tmp_path / kind.name, whole_files[kind.name]) == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("h264-aac-front.mp4", r"of picture are there, 2.000 s are declared"),
        ("h264-flac.mkv", r"declare"),
        ("vp9-opus.webm", r"declare"),
        ("mpeg4-mp3.avi", r"declared|packets"),
        ("h264-aac.flv", r"declare|cut short"),
        ("mpeg2-pcm.mxf", r"declare"),
        ("wmv2-wmav2.wmv", r"not as long as it declares"),
        ("h264-aac.ts", r"ends in the middle of a packet"),
        ("picture.gif", r"its end is missing"),
        ("sound.ogg", r"its end is missing"),
        ("sound.wav", r"declared|cut short"),
        ("sound.aiff", r"declared|cut short"),
        ("sound.caf", r"declared|cut short"),
        ("sound.flac", r"of sound are there, 2.000 s are declared"),
        ("sound.mp3", r"of sound are there, 2.0\d\d s are declared"),
    ],
)
def test_a_file_cut_short_says_what_is_missing(whole_files, tmp_path, name, said):
    data = whole_files[name]
    reason = reason_of(tmp_path / name, data[: len(data) * 6 // 10 // 188 * 188 + 90])
    assert re.search(said, reason), reason


def test_a_stream_without_a_decoder_is_named(whole_files, tmp_path):
    data = whole_files["h264-aac.mp4"].replace(b"avc1", b"zzzz")
    assert "1 streams have no decoder" in reason_of(tmp_path / "a.mp4", data)


def test_a_container_that_is_read_as_the_stream_within_is_named(whole_files, tmp_path):
    data = b"\x11" * 300 + whole_files["mpeg4-mp3.avi"]
    assert "only a bare stream is found (m4v)" in reason_of(tmp_path / "a.avi", data)


def test_an_mp3_without_a_table_of_contents_is_not_held_to_a_guess(whole_files, tmp_path):
    data = whole_files["sound.mp3"]
    first, second = data.find(b"\xff\xfb"), data.find(b"\xff\xfb", data.find(b"\xff\xfb") + 4)
    assert b"Info" in data[first:second], "the first frame of a whole file is its table"
    assert reason_of(tmp_path / "a.mp3", data[second : len(data) // 2]) == ""
