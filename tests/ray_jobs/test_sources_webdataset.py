"""WebDataset shards: what Python's tarfile finds in a tar, and what samples are made of it."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.errors import UserError
from ray_jobs.sources import SourceRow, read_sources, with_actions
from ray_jobs.sources.tars import TarError, Window, entries
from ray_jobs.sources.webdataset import shards_of
from ray_jobs.stores import local_copy, member_of, read_bytes

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "/".join(["a-long-folder-name"] * 20)  # 379 characters


def npy(values) -> bytes:
    raw = io.BytesIO()
    np.save(raw, values)
    return raw.getvalue()


def write_tar(path: Path, files: dict[str, bytes], kind: str = "gnu") -> Path:
    with tarfile.open(path, "w", format=FORMATS[kind]) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def ours(path: Path) -> dict[str, bytes]:
    with Window(str(path)) as window:
        return {entry.name: window.read(entry.offset, entry.size) for entry in entries(window)}


def pythons(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {}
        for info in archive:
            file = archive.extractfile(info) if info.isfile() or info.islnk() else None
            if file is not None:
                found[info.name] = file.read()
        return found


names = st.text("abc.é/ж", min_size=1, max_size=12).map(
    lambda name: f"x{name}".replace("//", "/").rstrip("/")
)
lengths = st.integers(0, 40)


@settings(max_examples=60, deadline=None)
@given(
    files=st.dictionaries(st.tuples(names, lengths), st.binary(max_size=1500), min_size=1, max_size=6),
    kind=st.sampled_from(sorted(FORMATS)),
)
def test_members_are_those_that_tarfile_finds(tmp_path_factory, files, kind):
    longest = 4 if kind == "ustar" else 40  # its names are short
    named = {
        f"{'folder-of-16-chr/' * min(depth, longest)}{name}": raw for (name, depth), raw in files.items()
    }
    path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", named, kind)
    assert ours(path) == pythons(path) == named


@pytest.mark.parametrize("kind", FORMATS)
def test_links_folders_and_times_are_passed_over_and_hard_links_followed(tmp_path, kind):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.txt").write_bytes(b"hello")
    (tmp_path / "d/b.txt").hardlink_to(tmp_path / "d/a.txt")
    (tmp_path / "d/c.txt").symlink_to("a.txt")
    with tarfile.open(tmp_path / "a.tar", "w", format=FORMATS[kind]) as archive:
        archive.add(tmp_path / "d", "d")
    assert (
        ours(tmp_path / "a.tar") == pythons(tmp_path / "a.tar") == {"d/a.txt": b"hello", "d/b.txt": b"hello"}
    )


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_long_names_of_files_and_of_links(tmp_path, kind):
    with tarfile.open(
        tmp_path / "a.tar", "w", format=FORMATS[kind], pax_headers={"comment": "for all"}
    ) as archive:
        info = tarfile.TarInfo(f"{LONG}/a.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"hello"))
        link = tarfile.TarInfo(f"{LONG}/b.txt")
        link.type, link.linkname = tarfile.LNKTYPE, info.name
        archive.addfile(link)
    assert ours(tmp_path / "a.tar") == pythons(tmp_path / "a.tar")
    assert list(ours(tmp_path / "a.tar")) == [f"{LONG}/a.txt", f"{LONG}/b.txt"]


def test_padding_at_the_end_may_be_odd(tmp_path):
    raw = write_tar(tmp_path / "a.tar", {"a.txt": b"hello"}).read_bytes()
    for length in (len(raw), 512 + 5, 1024, 1024 + 512):
        (tmp_path / "b.tar").write_bytes(raw[:length])
        assert ours(tmp_path / "b.tar") == {"a.txt": b"hello"}
    (tmp_path / "b.tar").write_bytes(raw + b"garbage behind the end")
    assert ours(tmp_path / "b.tar") == {"a.txt": b"hello"}


def test_a_size_in_base_256_is_read(tmp_path):
    raw = bytearray(write_tar(tmp_path / "a.tar", {"a.txt": b"hello"}).read_bytes())
    raw[124:136] = b"\x80" + (5).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / "a.tar").write_bytes(raw)
    assert ours(tmp_path / "a.tar") == pythons(tmp_path / "a.tar") == {"a.txt": b"hello"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"this is no archive" * 99, "is not a tar archive"),
        (b"x" * 100, "half a header at byte 0"),
        (b"\xff" * 2000, "is not a tar archive"),
    ],
)
def test_what_is_no_tar_says_so(tmp_path, content, reason):
    (tmp_path / "a.tar").write_bytes(content)
    with Window(str(tmp_path / "a.tar")) as window, pytest.raises(TarError, match=reason):
        list(entries(window))
    with pytest.raises(UserError, match=rf"a\.tar: {reason}"):
        read_sources([str(tmp_path / "a.tar")])


@pytest.mark.parametrize("told", [b"x5 path=a\n", b"0 path=a\n", b" path=a\n", b"99 path=a\n", b"path"])
def test_a_pax_header_that_does_not_read_is_an_error_and_no_endless_loop(tmp_path, told):
    raw = bytearray(write_tar(tmp_path / "a.tar", {"é.txt": b"hello"}, "pax").read_bytes())
    raw[512:1024] = told.ljust(512, b"\0")
    (tmp_path / "b.tar").write_bytes(raw)
    with (
        Window(str(tmp_path / "b.tar")) as window,
        pytest.raises(TarError, match="pax header that does not read at byte 0"),
    ):
        list(entries(window))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_bytes_give_members_or_one_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("tar")
    kind = data.draw(st.sampled_from(sorted(FORMATS)))
    name = "é.txt" if kind == "pax" else f"{LONG[: 150 if kind == 'gnu' else 90]}/a.txt"
    raw = bytearray(
        write_tar(folder / "a.tar", {name: b"hello", "b.mp4": b"x" * 600}, kind).read_bytes()[:4096]
    )
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    (folder / "b.tar").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with Window(str(folder / "b.tar")) as window:
        found = []
        with suppress(TarError):
            found += entries(window)
        assert all(entry.reason or entry.offset + entry.size <= window.num_bytes for entry in found)


def test_samples_are_files_of_one_name_up_to_the_first_point(tmp_path):
    shard = write_tar(
        tmp_path / "a.tar",
        {
            "x/000.depth.png": b"depth",
            "x/000.jpg": b"picture",
            "x/000.txt": b" a ball\n",
            "x/000.json": json.dumps({"start_s": 0.5, "license": "CC0", "id": "first", "url": "u"}).encode(),
            "x/000.wav": b"sound",
            "x/000.actions.npy": npy(np.ones((2, 3), np.float32)),
            "x/001.flac": b"sound alone",
            "x/001.cls": b"7",
            "y/001.MP4": b"another sample",
            "y/.DS_Store": b"",
            "README": b"no sample",
        },
    )
    found = read_sources([str(shard)])
    assert [row.id for row in found.rows] == ["first", "x/001", "y/001"]
    first, second, third = found.rows
    assert (first.caption, first.license, first.start_s) == ("a ball", "CC0", 0.5)
    assert read_bytes(first.uri) == b"picture"
    assert read_bytes(first.audio_uri) == b"sound"
    assert with_actions(first).actions == "[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]"
    assert (read_bytes(second.uri), second.audio_uri, second.caption) == (b"sound alone", "", "7")
    assert read_bytes(third.uri) == b"another sample"
    assert found.warnings == [f"{shard}: columns that are not used: .depth.png, url"]
    assert found.rejected == []
    for row in found.rows:
        member = member_of(row.uri)
        assert member is not None
        assert member.tar == str(shard)


def test_samples_that_cannot_be_used_are_rows_with_reasons(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {
            "0.txt": b"no media",
            "1.mp4": b"film",
            "1.json": b"{oops",
            "2.mp4": b"film",
            "2.json": b'{"start_s": -1}',
            "3.mp4": b"film",
        },
    )
    found = read_sources([str(tmp_path / "a.tar")])
    assert [row.id for row in found.rows] == ["3"]
    assert [(bad["uri"][-7:], bad["reason"]) for bad in found.rejected] == [
        ("a.tar/0", "the sample holds no media, only .txt"),
        ("a.tar/1", found.rejected[1]["reason"]),
        ("a.tar/2", "start_s=-1.0, end_s=None: the span must begin at 0 or later and end after it begins"),
    ]
    assert "does not read as JSON" in found.rejected[1]["reason"]
    write_tar(tmp_path / "b.tar", {"0.mp4": b"film", "1.mp4": b"x" * 5000})
    cut = (tmp_path / "b.tar").read_bytes()[:3000]
    (tmp_path / "b.tar").write_bytes(cut)
    found = read_sources([str(tmp_path / "b.tar")])
    assert [row.id for row in found.rows] == ["0"]
    assert [bad["reason"] for bad in found.rejected] == [
        "1.mp4: the archive ends 3536 bytes before this member does"
    ]


def test_an_archive_that_breaks_off_gives_what_came_before_and_says_where(tmp_path):
    raw = write_tar(tmp_path / "a.tar", {"0.mp4": b"film", "1.mp4": b"film"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(raw[:1024] + b"?" * 512 + raw[1536:])
    found = read_sources([str(tmp_path / "a.tar")])
    assert [row.id for row in found.rows] == ["0"]
    assert found.rejected == [{"uri": str(tmp_path / "a.tar"), "reason": "no tar header at byte 1024"}]


def test_shards_are_a_tar_a_folder_of_them_or_a_pattern(tmp_path):
    for i in range(12):
        write_tar(tmp_path / f"shard-{i:03d}.tar", {f"{i}.mp4": b"film"})
    (tmp_path / "loose.mp4").write_bytes(b"x")
    ids = [row.id for row in read_sources([f"{tmp_path}/shard-{{000..011}}.tar"]).rows]
    assert ids == [str(i) for i in range(12)]
    folder = read_sources([str(tmp_path)]).rows
    assert [row.id for row in folder] == ["", *ids]
    assert folder[0] == SourceRow(f"{tmp_path}/loose.mp4")
    with pytest.raises(UserError, match=r"shard-012\.tar, .*014\.tar and 1 more: no such shard \(4 of 16\)"):
        read_sources([f"{tmp_path}/shard-{{000..015}}.tar"])


def test_one_broken_shard_of_many_is_a_row_with_a_reason(tmp_path):
    write_tar(tmp_path / "0.tar", {"0.mp4": b"film"})
    (tmp_path / "1.tar").write_bytes(b"no tar" * 200)
    write_tar(tmp_path / "2.tar", {})
    found = read_sources([str(tmp_path)])
    assert [row.id for row in found.rows] == ["0"]
    assert {bad["uri"][-5:]: bad["reason"] for bad in found.rejected} == {
        "1.tar": "is not a tar archive",
        "2.tar": "the archive holds no samples",
    }


@pytest.mark.parametrize(
    ("pattern", "shards"),
    [
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("{b,a}/{1..2}.tar", ["b/1.tar", "b/2.tar", "a/1.tar", "a/2.tar"]),
        ("s3://bucket/{2..1}.tar", ["s3://bucket/2.tar", "s3://bucket/1.tar"]),
        ("a{b}.tar", ["a{b}.tar"]),
    ],
)
def test_braces_are_spelled_out_as_a_shell_does(pattern, shards):
    assert shards_of(pattern) == shards


def test_a_real_film_in_a_shard_decodes_as_the_film(tmp_path, clip_folder, monkeypatch):
    from avtok.decode import decode_clip

    monkeypatch.setenv("WORLDMODEL_SPOOL", str(tmp_path / "spool"))
    film = clip_folder / "bounce_0.mp4"
    shard = write_tar(tmp_path / "a.tar", {"0.txt": b"a ball", "0.mp4": film.read_bytes()}, "pax")
    (row,) = read_sources([str(shard)]).rows
    cut = {"start_s": 0.25, "end_s": 1.0, "fps": 16, "size": (64, 64), "sample_rate": 16000}
    read, expected = decode_clip(str(local_copy(row.uri)), **cut), decode_clip(str(film), **cut)
    assert np.array_equal(read.video_THWC, expected.video_THWC)
    assert np.array_equal(read.audio_N, expected.audio_N)
