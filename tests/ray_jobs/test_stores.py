"""Bytes of an address: local, on a real S3 server on loopback, and in tars."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from avtok.media import ClipError
from ray_jobs import store_clients, stores
from ray_jobs.spool import Spool
from ray_jobs.stores import StoreError, content_key, exists, list_files, local_copy, read_bytes
from tests.ray_jobs.local_s3 import SECRET, LocalS3, Proxy

FILM = bytes(range(256)) * 1000


@pytest.fixture
def proxy(s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(s3.address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    monkeypatch.setattr(store_clients, "BACKOFF_S", 0.01)
    monkeypatch.setattr(store_clients, "SDK_TRIES", 1)  # its own pauses are seconds
    yield proxy
    proxy.close()


def tar_of(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def member_uri(tar_uri: str, raw: bytes, name: str) -> str:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        info = archive.getmember(name)
    return f"{tar_uri}#{info.offset_data}+{info.size}/{name}"


def test_local_paths_are_their_own_copies(tmp_path: Path):
    path = tmp_path / "a b#1.mp4"
    path.write_bytes(FILM)
    assert local_copy(str(path)) == path
    assert local_copy(f"file://{tmp_path}/a%20b%231.mp4") == path
    assert read_bytes(f"file://{tmp_path}/a%20b%231.mp4") == FILM


@pytest.mark.parametrize("key", ["film.mp4", "deep/er/a film #1+2%20.mp4", "ünïcode/фильм.mp4"])
def test_an_object_becomes_a_local_file_with_its_bytes_and_its_suffix(s3: LocalS3, key: str):
    uri = s3.put(key, FILM)
    copy = local_copy(uri)
    assert copy.read_bytes() == FILM
    assert copy.suffix == ".mp4"
    assert local_copy(uri) == copy
    assert exists(uri)
    assert read_bytes(uri) == FILM
    assert list_files(s3.uri()) == [uri]


def test_a_copy_that_is_there_costs_no_request(s3: LocalS3, proxy: Proxy):
    uri = s3.put("film.mp4", FILM)
    local_copy(uri)
    before = len(proxy.requests)
    assert before
    local_copy(uri)
    assert len(proxy.requests) == before


def test_files_are_listed_below_a_folder_in_order_and_nothing_beside_it(s3: LocalS3):
    for key in ("clips/b.mp4", "clips/a/2.mp4", "clips/a/1.mp4", "clips-other/c.mp4"):
        s3.put(key, b"x")
    expected = [s3.uri(f"clips/{name}") for name in ("a/1.mp4", "a/2.mp4", "b.mp4")]
    assert list_files(s3.uri("clips")) == list_files(s3.uri("clips") + "/") == expected


def test_an_object_of_the_same_size_that_changed_is_fetched_anew(
    s3: LocalS3, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stores, "IDENTITY_S", 0.0)
    uri = s3.put("film.mp4", FILM)
    old, key = local_copy(uri), content_key(uri)
    s3.put("film.mp4", FILM[::-1])  # within the second that S3 rounds to
    assert content_key(uri) != key
    assert local_copy(uri).read_bytes() == FILM[::-1]
    assert old.read_bytes() == FILM


def test_an_object_that_changes_while_it_is_read_makes_no_copy(
    s3: LocalS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(stores, "BLOCK_BYTES", len(FILM) // 2)
    uri, read = s3.put("film.mp4", FILM), stores._blocks

    def interrupted(uri: str, num_bytes: int) -> Iterator[bytes]:
        for block in read(uri, num_bytes):
            yield block
            s3.put("film.mp4", FILM[::-1])

    monkeypatch.setattr(stores, "_blocks", interrupted)
    with pytest.raises(StoreError, match="changed while it was read"):
        local_copy(uri)
    assert list((tmp_path / "spool").iterdir()) == []
    monkeypatch.setattr(stores, "_blocks", read)
    assert local_copy(uri).read_bytes() == FILM[::-1]


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_member_of_a_tar_is_copied_by_its_byte_range(s3: LocalS3, proxy: Proxy, tmp_path: Path, is_remote):
    raw = tar_of({"000/first.mp4": b"no" * 5000, "000/film.mp4": FILM, "last.txt": b"x"})
    tar_uri = s3.put("shard.tar", raw) if is_remote else str(tmp_path / "shard.tar")
    (tmp_path / "shard.tar").write_bytes(raw)
    uri = member_uri(tar_uri, raw, "000/film.mp4")
    copy = local_copy(uri)
    assert copy.read_bytes() == read_bytes(uri) == FILM
    assert copy.name.endswith("film.mp4")
    member = stores.member_of(uri)
    assert member is not None
    assert str(member) == uri
    ranges = {asked for method, _, asked in proxy.requests if method == "GET"}
    assert ranges == ({f"bytes={member.offset}-{member.offset + member.size - 1}"} if is_remote else set())


def test_a_member_that_the_tar_no_longer_holds_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLDMODEL_SPOOL", str(tmp_path / "spool"))
    raw = tar_of({"film.mp4": FILM})
    (tmp_path / "shard.tar").write_bytes(raw[:1000])
    with pytest.raises(StoreError, match="ends 255512 bytes early"):
        local_copy(member_uri(str(tmp_path / "shard.tar"), raw, "film.mp4"))
    with pytest.raises(StoreError, match=r"gone\.tar: no such file"):
        local_copy(f"{tmp_path}/gone.tar#512+3/a.mp4")


def test_a_tar_that_was_written_anew_gives_its_new_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLDMODEL_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr(stores, "IDENTITY_S", 0.0)
    for content in (FILM, FILM[::-1]):
        (tmp_path / "shard.tar").write_bytes(tar_of({"film.mp4": content}))
        copy = local_copy(f"{tmp_path}/shard.tar#512+{len(FILM)}/film.mp4")
        assert copy.read_bytes() == content


def said_by(uri: str) -> str:
    """What copying and reading say: one line that begins with the address, and holds no secret."""
    lines = []
    for ask in (local_copy, read_bytes, content_key):
        with pytest.raises(StoreError) as raised:
            ask(uri)
        lines.append(str(raised.value))
    assert len(set(lines)) == 1
    assert lines[0].startswith(f"{uri}: ")
    assert "\n" not in lines[0]
    assert SECRET not in lines[0]
    return lines[0]


def test_what_is_not_there_is_said_in_a_line(s3: LocalS3):
    assert issubclass(StoreError, ClipError)
    assert said_by(s3.uri("gone.mp4")).endswith("gone.mp4: no such object")
    assert said_by("s3://no-such-bucket/a.mp4").endswith("a.mp4: no such bucket")
    assert not exists(s3.uri("gone.mp4"))
    with pytest.raises(StoreError, match="no such bucket"):
        list_files("s3://no-such-bucket/clips")
    with pytest.raises(StoreError, match="no such object"):
        list_files(s3.uri("clips"))


def test_an_endpoint_that_is_dead_is_named(s3: LocalS3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_clients, "BACKOFF_S", 0.01)
    monkeypatch.setattr(store_clients, "SDK_TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 does not answer" in said_by(s3.uri("film.mp4"))


def test_an_endpoint_that_never_answers_is_given_up(s3: LocalS3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_clients, "TRIES", 1)
    monkeypatch.setattr(store_clients, "SDK_TRIES", 1)
    monkeypatch.setattr(store_clients, "IDLE_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(StoreError, match=r"does not answer \(Operation too slow"):
            local_copy(s3.uri("film.mp4"))


def test_a_refusal_is_not_asked_again(s3: LocalS3, proxy: Proxy):
    uri = s3.put("film.mp4", FILM)
    proxy.status, proxy.failures = 403, 1
    with pytest.raises(StoreError, match="no permission; check the credentials"):
        local_copy(uri)
    assert len(proxy.requests) == 1


def test_a_store_that_fails_a_few_times_is_asked_again(s3: LocalS3, proxy: Proxy):
    uri = s3.put("film.mp4", FILM)
    proxy.failures = 2
    assert local_copy(uri).read_bytes() == FILM
    proxy.failures = 2
    assert list_files(s3.uri()) == [uri]


def test_a_store_that_keeps_failing_is_given_up(s3: LocalS3, proxy: Proxy):
    uri = s3.put("film.mp4", FILM)
    proxy.failures = 1000
    with pytest.raises(StoreError, match=r"the store failed: .*503"):
        local_copy(uri)
    assert len(proxy.requests) == store_clients.TRIES


def test_a_read_that_fails_midway_goes_on_where_it_was(
    s3: LocalS3, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stores, "BLOCK_BYTES", 100_000)
    uri, read_at = s3.put("film.mp4", FILM), stores.RangeReader.read_at

    def breaking(self: stores.RangeReader, offset: int, num_bytes: int) -> bytes:
        proxy.failures = 2 if offset else 0
        return read_at(self, offset, num_bytes)

    monkeypatch.setattr(stores.RangeReader, "read_at", breaking)
    assert local_copy(uri).read_bytes() == FILM
    assert proxy.failures == 0
    first = [asked for method, _, asked in proxy.requests if asked == "bytes=0-99999"]
    assert len(first) == 1


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1/a.mp4", r"http:// is not read; give a path, s3:// or gs://"),
        ("s3:///a.mp4", "names no bucket"),
        ("s3://me:pass-word@bucket/a.mp4", r"s3://\.\.\.@bucket/a.mp4: credentials do not belong"),
    ],
)
def test_other_addresses_are_refused_without_repeating_a_secret(uri: str, message: str):
    with pytest.raises(StoreError, match=message) as raised:
        local_copy(uri)
    assert "pass-word" not in str(raised.value)


def test_an_object_larger_than_the_spool_is_refused(s3: LocalS3, tmp_path: Path):
    with pytest.raises(
        StoreError, match=r"film.mp4: is 0.000256 GB and the spool holds 0.0001 GB; raise data.spool_gb"
    ):
        local_copy(s3.put("film.mp4", FILM), spool=Spool(tmp_path / "small", 100_000))


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of a bucket behind a server. One in this process would hang: reading holds Python's lock."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    script = Path(__file__).with_name("local_gcs.py")
    server = subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.stdout.readline().strip()}")
    monkeypatch.setenv("WORLDMODEL_SPOOL", str(tmp_path / "spool"))
    yield folder
    server.terminate()
    server.wait()


def test_google_cloud_storage_is_read_alike(gcs: Path):
    (gcs / "clips").mkdir()
    for name, content in {"clips/b.mp4": FILM, "clips/a.mp4": b"a", "other.mp4": b"o"}.items():
        (gcs / name).write_bytes(content)
    assert list_files("gs://bucket/clips") == ["gs://bucket/clips/a.mp4", "gs://bucket/clips/b.mp4"]
    copy = local_copy("gs://bucket/clips/b.mp4")
    assert copy.read_bytes() == FILM
    assert copy.suffix == ".mp4"
    with pytest.raises(StoreError, match=r"gs://bucket/gone\.mp4: no such object"):
        local_copy("gs://bucket/gone.mp4")
