"""The spool: whole copies only, one fetch for many processes, and a bound that spares what is in use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from ray_jobs import spool as spool_module
from ray_jobs.spool import HELD, Spool, SpoolError

REPO = Path(__file__).parents[2]
OLD_S = 3600.0
# Fetches `name` of 6 bytes with a pause in the middle, and notes each fetch that began in a file.
FETCH = """
import sys, time
from pathlib import Path
from ray_jobs.spool import Spool
folder, name, log, pause_s = sys.argv[1:]
def write(file):
    with open(log, "a") as told:
        told.write("fetch\\n")
    file.write(b"abc")
    file.flush()
    time.sleep(float(pause_s))
    file.write(b"def")
path = Spool(folder, 1000).get(name, 6, write)
print(path.read_bytes().decode(), flush=True)
sys.stdin.read()  # holds its copies until the test lets go
"""


def fetch_elsewhere(folder: Path, name: str, log: Path, pause_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(folder), name, str(log), str(pause_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{REPO}:{REPO / 'tokenizers'}"},
    )


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def writes(content: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(content)

    return write


def never(file: BinaryIO) -> None:
    raise AssertionError("fetched again")


def age(path: Path, by_s: float = OLD_S) -> None:
    then_s = time.time() - by_s
    os.utime(path, (then_s, then_s))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_processes_that_want_one_copy_at_once_fetch_it_once(tmp_path: Path):
    log = tmp_path / "log"
    readers = [fetch_elsewhere(tmp_path / "spool", "a.mp4", log, 0.5) for _ in range(3)]
    assert [reader.communicate("")[0].strip() for reader in readers] == ["abcdef"] * 3
    assert log.read_text() == "fetch\n"
    assert names(tmp_path / "spool") == ["a.mp4"]


def test_a_process_that_is_killed_while_it_fetches_leaves_nothing_that_is_used(tmp_path: Path):
    folder, log = tmp_path / "spool", tmp_path / "log"
    killed = fetch_elsewhere(folder, "a.mp4", log, 1000)
    until(lambda: log.exists() and (folder / ".a.mp4.partial").stat().st_size == 3)
    waits = fetch_elsewhere(folder, "a.mp4", log, 0)  # until the first is gone
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert waits.communicate("")[0].strip() == "abcdef"
    assert log.read_text() == "fetch\n" * 2
    assert names(folder) == ["a.mp4"]


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path):
    spool = Spool(tmp_path / "spool", 1000)

    def fails(file: BinaryIO) -> None:
        file.write(b"half")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        spool.get("a", 8, fails)
    with pytest.raises(SpoolError, match="gave 4 bytes instead of 8"):
        spool.get("a", 8, writes(b"half"))
    assert names(spool.folder) == []
    assert spool.get("a", 4, writes(b"good")).read_bytes() == b"good"


def test_a_copy_that_lost_its_data_with_the_power_is_fetched_anew(tmp_path: Path):
    Spool(tmp_path, 1000).get("a", 4, writes(b"good"))
    (tmp_path / "a").write_bytes(b"")
    assert Spool(tmp_path, 1000).get("a", 4, writes(b"good")).read_bytes() == b"good"


def test_the_least_recently_used_go_first_and_the_young_stay(tmp_path: Path):
    maker = Spool(tmp_path, 1000)
    for i, name in enumerate("abcd"):
        age(maker.get(name, 250, writes(b"x" * 250)), OLD_S - i)
    maker.close()
    reader = Spool(tmp_path, 1000)
    assert reader.get("a", 250, never) == tmp_path / "a"
    reader.close()
    reader.get("e", 300, writes(b"e" * 300))
    assert names(tmp_path) == ["a", "d", "e"]
    reader.get("f", 1000, writes(b"f" * 1000))
    assert names(tmp_path) == ["a", "e", "f"]  # both were asked for within the minute: more than the bound


def test_a_copy_in_use_by_another_process_stays(tmp_path: Path):
    folder = tmp_path / "spool"
    user = fetch_elsewhere(folder, "used", tmp_path / "log", 0)
    assert user.stdout is not None
    assert user.stdout.readline() == "abcdef\n"
    spool = Spool(folder, 1000)
    spool.get("idle", 6, writes(b"abcdef"))
    spool.close()
    for path in folder.iterdir():
        age(path)
    assert spool.make_room(1000) == 6
    assert names(folder) == ["used"]
    user.communicate("")
    assert spool.make_room(1000) == 6
    assert names(folder) == []


def test_the_copies_that_a_process_asked_for_last_stay_for_it(tmp_path: Path):
    spool = Spool(tmp_path, 1000)
    for i in range(HELD + 2):
        age(spool.get(f"{i:02d}", 1, writes(b"x")))
    spool.make_room(1000)
    assert names(tmp_path) == [f"{i:02d}" for i in range(2, HELD + 2)]


def test_what_a_crash_left_is_swept_when_it_is_old(tmp_path: Path):
    spool = Spool(tmp_path, 1000)
    for name in (".old.partial", ".young.partial"):
        (tmp_path / name).write_bytes(b"half")
    age(tmp_path / ".old.partial")
    spool.get("a", 1, writes(b"a"))
    assert names(tmp_path) == [".young.partial", "a"]


def test_many_small_copies_stay_within_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spool_module, "YOUNG_S", 0.0)
    monkeypatch.setattr(Spool.make_room, "__kwdefaults__", {"young_s": 0.0})
    spool, most = Spool(tmp_path, 100_000), 0
    for i in range(300):
        spool.get(f"{i:03d}", 1000, writes(b"x" * 1000))
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert 50_000 < most <= 105_000  # the folder is looked through every 32nd part of the bound


def test_a_file_larger_than_the_spool_is_refused_before_it_is_fetched(tmp_path: Path):
    with pytest.raises(SpoolError, match=r"2e-06 GB and the spool holds 1e-06 GB; raise data\.spool_gb"):
        Spool(tmp_path, 1000).get("a", 2000, never)


def test_a_full_disk_makes_room_and_then_is_an_error(tmp_path: Path):
    spool, tries = Spool(tmp_path, 1000), []
    spool.get("young", 6, writes(b"abcdef"))
    spool.close()

    def full(file: BinaryIO) -> None:
        tries.append(names(tmp_path))
        raise OSError(28, "No space left on device")

    with pytest.raises(SpoolError, match="the disk is full; set WORLDMODEL_SPOOL"):
        spool.get("a", 1000, full)
    assert tries == [[".a.lock", ".a.partial", "young"], [".a.lock", ".a.partial"]]
    assert names(tmp_path) == []


def test_a_spool_that_belongs_to_someone_else_is_refused(tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").symlink_to(tmp_path / "theirs")
    with pytest.raises(SpoolError, match="belongs to another user"):
        Spool(tmp_path / "ours", 1000)
