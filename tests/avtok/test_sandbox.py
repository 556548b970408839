"""Whatever a file does to its decoder is a ClipError of that file, and the next call works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from avtok.media import ClipError, Limits
from avtok.mux import write_clip
from avtok.sandbox import SandboxedReader

# What a decoder does when a file has taken it over, or is broken itself.
FAULTY = """
import ctypes, os, resource, signal, socket, time
import numpy as np
from avtok import decode, wire
from avtok.media import ClipError, DecodedClip

calls = 0

def fine(path): return path
def sleep(path): time.sleep(600)
def hold_the_lock(path): ctypes.PyDLL(None).sleep(600)  # without releasing Python's lock, as decord does
def crash(path): os.kill(os.getpid(), signal.SIGSEGV)
def abort(path): os.abort()
def leave(path): os._exit(3)
def hog(path): return len(bytearray(3 << 30))
def refuse(path): raise ClipError(path + ": is not to my taste")
def stumble(path): raise ZeroDivisionError("a rate of 0")
def environment(path): return dict(os.environ)
def write(path):
    with open(path, "ab", buffering=0) as file: file.write(b"x")

def open_many(path): return [open(path, "rb") for _ in range(200)]
def big(path): return np.zeros(200 << 20, np.uint8)
def long(path): return "x" * (8 << 20)
def numbers(path):
    return {"levels": np.arange(6, dtype=np.float32).reshape(2, 3), "at": (1, 2.5, None, [True])}
def own_class(path): return object()

def crash_unless_first(path):
    global calls
    calls += 1
    if calls > 1:
        os.abort()
    return calls

def _to_parent(data):
    for name in os.listdir("/proc/self/fd"):
        try:
            socket.socket(fileno=os.dup(int(name))).sendall(data)
        except OSError:
            continue

def send_garbage(path): _to_parent(b"<html>" * 100)
def send_giant(path): _to_parent(wire.HEADER.pack(wire.MAGIC, 2**31 - 1))
def send_deep(path): _to_parent(wire.HEADER.pack(wire.MAGIC, 400000) + b"[" * 400000)
def send_old(path): _to_parent(wire.dump({"call": 0, "result": "old"}))
def send_class(path): _to_parent(wire.dump({"call": 1, "result": {"record": ["Popen", {}]}}))
def send_beyond(path): _to_parent(wire.dump({"call": 1, "used": 64, "result": {"array": ["|u1", [99], 0]}}))
def send_objects(path): _to_parent(wire.dump({"call": 1, "used": 64, "result": {"array": ["|O", [1], 0]}}))
def send_part(path):
    _to_parent(wire.HEADER.pack(wire.MAGIC, 100) + b"{")
    time.sleep(600)

def forge_cuts(kind):
    pixels = np.zeros((16, 32, 32, 3), np.uint8)
    sound = np.zeros(16000, np.float32)
    forged = {
        "smaller": DecodedClip(pixels[:, :16], sound, 0, 0, 0.0, 1.0),
        "floats": DecodedClip(pixels[:3].astype("f4"), sound, 0, 0, 0.0, 1.0),
        "longer": DecodedClip(pixels, sound[:-1], 0, 0, 0.0, 1.0),
        "no numbers": DecodedClip(pixels, sound + np.nan, 0, 0, 0.0, 1.0),
        "none": None,
    }[kind]
    decode.decode_clip = lambda uri, **cut: forged
"""
LIMITS = Limits(seconds=1.0, memory_mb=600)
CUT = {"start_s": 0.0, "end_s": 1.0, "fps": 16, "size": (32, 32), "sample_rate": 16000}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty_decoder.py").write_text(FAULTY)
    sys.path.append(str(folder))
    yield ("faulty_decoder", "avtok.decode")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def reader(faulty):
    with SandboxedReader(LIMITS, packages=faulty) as reader:
        yield reader


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    levels_T = np.arange(32, dtype=np.uint8) * 7
    picture = np.broadcast_to(levels_T[:, None, None, None], (32, 64, 64, 3)).copy()
    tone = (0.5 * np.sin(np.arange(32000) * 2 * np.pi * 440 / 16000)).astype(np.float32)
    write_clip(path, picture, tone, fps=16, sample_rate=16000)
    return str(path)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("sleep", r"took longer than 1 s; its decoder was killed"),
        ("hold_the_lock", r"took longer than 1 s; its decoder was killed"),
        ("send_part", r"took longer than 1 s; its decoder was killed"),
        ("crash", r"its decoder died of SIGSEGV"),
        ("abort", r"its decoder died of SIGABRT"),
        ("leave", r"its decoder ended with 3"),
        ("hog", r"took more than 600 MB"),
        ("refuse", r"^bad\.mp4: is not to my taste$"),
        ("stumble", r"reading failed: ZeroDivisionError: a rate of 0"),
        ("write", r"reading failed: OSError: .*File too large"),
        ("open_many", r"reading failed: OSError: .*Too many open files"),
        ("big", r"takes more than the 64 MB"),
        ("long", r"bytes as JSON"),
        ("own_class", r"object does not travel"),
        ("send_garbage", r"nonsense: .*is no header"),
        ("send_giant", r"nonsense: .*is no header"),
        ("send_deep", r"nonsense: no JSON"),
        ("send_old", r"answered another call"),
        ("send_class", r"nonsense: KeyError"),
        ("send_beyond", r"nonsense: an array of 99 bytes"),
        ("send_objects", r"nonsense: no array has dtype"),
    ],
)
def test_a_decoder_gone_wrong_is_an_error_of_its_file_and_the_next_call_works(
    reader, tmp_path, monkeypatch, does, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.mp4").write_bytes(b"anything")
    if does.startswith("send_"):
        reader.close()  # answers that were forged for call 1
    with pytest.raises(ClipError, match=said) as caught:
        reader.call(f"faulty_decoder.{does}", "bad.mp4")
    assert str(caught.value).startswith("bad.mp4: ")
    assert (tmp_path / "bad.mp4").read_bytes() == b"anything"
    assert reader.call("faulty_decoder.fine", "good.mp4") == "good.mp4"


@pytest.mark.parametrize("kind", ["smaller", "floats", "longer", "no numbers", "none"])
def test_a_cut_that_was_not_asked_for_is_refused(faulty, clip, kind):
    with SandboxedReader(LIMITS, packages=faulty) as reader:
        reader.call("faulty_decoder.forge_cuts", kind)
        with pytest.raises(ClipError, match="nonsense"):
            reader.decode_clip(clip, **CUT)
        assert reader.decode_clip(clip, **CUT).video_THWC.shape == (16, 32, 32, 3)  # of a fresh process


def test_values_come_back_as_they_were(reader):
    found = reader.call("faulty_decoder.numbers", "a")
    assert found["levels"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["at"] == (1, 2.5, None, [True])


def test_a_process_that_served_other_files_is_not_held_against_the_next_one(faulty):
    with SandboxedReader(LIMITS, packages=faulty) as reader:
        assert [reader.call("faulty_decoder.crash_unless_first", "a") for _ in range(3)] == [1, 1, 1]
        assert reader.num_kills == 2


def test_only_public_functions_of_the_packages_are_called(reader):
    for name in (
        "os.getcwd",
        "faulty_decoder._to_parent",
        "avtok.mux.write_clip",
        "faulty_decoderx.fine",
        "fine",
    ):
        with pytest.raises(ClipError, match="public functions of"):
            reader.call(name, "a")


def test_credentials_do_not_reach_the_decoder(faulty, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with SandboxedReader(LIMITS, packages=faulty) as reader:
        environment = reader.call("faulty_decoder.environment", "a")
    assert "hunter2" not in str(environment)
    assert environment["PATH"] == os.environ["PATH"]


def test_a_decoder_that_cannot_start_is_no_fault_of_a_file():
    with (
        SandboxedReader(LIMITS, "no_such_backend") as reader,
        pytest.raises(RuntimeError, match="no_such_backend"),
    ):
        reader.probe("a.mp4")


def test_a_sandboxed_reader_gives_what_a_plain_one_gives(clip):
    from avtok.reader import PlainReader

    plain = PlainReader()
    with SandboxedReader(Limits()) as reader:
        ours, theirs = reader.probe(clip), plain.probe(clip)
        # Sums of squares differ in their last digit with where their arrays lie in memory.
        assert ours.rms_dbfs == pytest.approx(theirs.rms_dbfs, abs=1e-9)
        assert replace(ours, rms_dbfs=None) == replace(theirs, rms_dbfs=None)
        for size in ((32, 32), (512, 512)):  # copied, and handed over as shared memory
            ours = reader.decode_clip(clip, **{**CUT, "size": size}, context_frames=3, context_samples=100)
            theirs = plain.decode_clip(clip, **{**CUT, "size": size}, context_frames=3, context_samples=100)
            assert np.array_equal(ours.video_THWC, theirs.video_THWC)
            assert np.abs(ours.audio_N - theirs.audio_N).max() < 1e-6  # threads of BLAS may differ
            assert ours.video_THWC.flags.writeable
            assert (ours.context_frames, ours.context_samples, ours.end_s) == (3, 100, 1.0)


def test_a_cut_larger_than_the_memory_is_refused_before_it_is_made(clip):
    with SandboxedReader(LIMITS) as reader, pytest.raises(ClipError, match=r"limits\.memory_mb=600"):
        reader.decode_clip(clip, **{**CUT, "size": (8192, 8192)})


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(max_pixels=64 * 63), r"its frames have 64x64 pixels, limits.max_pixels=4032"),
        (Limits(max_streams=1), r"has 2 streams, limits.max_streams=1"),
        (Limits(max_file_gb=1e-6), r"limits.max_file_gb=1e-06"),
    ],
)
def test_a_file_beyond_the_limits_is_refused(clip, limits, said):
    with SandboxedReader(limits) as reader:
        for read in (reader.probe, lambda uri: reader.decode_clip(uri, **CUT)):
            with pytest.raises(ClipError, match=said):
                read(clip)
    with SandboxedReader(Limits(max_pixels=64 * 64, max_streams=2)) as reader:
        assert reader.probe(clip).reason == ""


def test_frames_that_grow_in_the_middle_of_a_stream_are_not_decoded(tmp_path):
    path, data = tmp_path / "grows.ts", b""
    for side, first in ((64, 0), (640, 16)):  # spliced, as broadcasts are
        with av.open(str(path), "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=16, options={"bf": "0"})
            stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, 90000)
            for index in range(first, first + 16):
                frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 40 + 10 * first, np.uint8))
                frame.pts, frame.time_base = index * 90000 // 16, Fraction(1, 90000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        data += path.read_bytes()
    path.write_bytes(data)
    later = {**CUT, "start_s": 1.1, "end_s": 1.9}
    with SandboxedReader(Limits(max_pixels=64 * 64)) as strict, SandboxedReader(Limits()) as lax:
        assert lax.decode_clip(str(path), **later).video_THWC.mean() > 150
        assert strict.decode_clip(str(path), **{**CUT, "end_s": 0.8}).video_THWC.mean() < 60
        with pytest.raises(ClipError, match=r"ends at 0\.9.*1[56] packets failed"):
            strict.decode_clip(str(path), **later)


def test_the_decoder_dies_with_its_parent(faulty):
    code = (
        "import sys, time; from avtok.sandbox import SandboxedReader; from avtok.media import Limits\n"
        "reader = SandboxedReader(Limits(), packages=('faulty_decoder',))\n"
        "reader.call('faulty_decoder.fine', 'a')\n"
        "print(reader._child.process.pid, flush=True); reader.call('faulty_decoder.hold_the_lock', 'a')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.2)  # until it holds the lock; were it not yet there, it would die all the same
        assert child.is_running()
        parent.kill()
        psutil.wait_procs([child], timeout=20)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_decoder_outlives_the_thread_that_asked_first(reader):
    reader.close()
    kills = reader.num_kills
    thread = threading.Thread(target=lambda: reader.call("faulty_decoder.fine", "a"))
    thread.start()
    thread.join()
    assert reader.call("faulty_decoder.fine", "b") == "b"
    assert reader.num_kills == kills


def test_threads_take_turns(reader):
    results = {}

    def ask(name: str) -> None:
        results[name] = [reader.call("faulty_decoder.fine", name) for _ in range(50)]

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: [name] * 50 for name in "abcd"}


def test_an_interrupted_call_is_not_answered_to_the_next_one(faulty):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    with SandboxedReader(Limits(), packages=faulty) as reader:
        reader.call("faulty_decoder.fine", "a")
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                reader.call("faulty_decoder.sleep", "a")
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert reader.call("faulty_decoder.fine", "b") == "b"


def test_memory_stays_where_it_is_over_many_cuts_of_large_frames(tmp_path):
    frames_THWC = np.full((8, 1080, 1920, 3), 90, np.uint8)
    for number in range(4):
        write_clip(tmp_path / f"{number}.mp4", frames_THWC, None, fps=16, sample_rate=16000)
    grown, highest = [], 0
    with SandboxedReader(Limits(seconds=20)) as reader:
        for number in range(48):
            at_s = number % 3 / 8
            cut = CUT | {"start_s": at_s, "end_s": at_s + 0.2}
            reader.decode_clip(str(tmp_path / f"{number % 4}.mp4"), **cut)
            highest = max(highest, psutil.Process(reader.pid).memory_info().rss)
            if number % 16 == 15:
                grown.append(highest)
    assert grown[2] - grown[0] < 2 * frames_THWC[0].nbytes


def test_many_calls_leave_nothing_behind(faulty, clip):
    def left() -> tuple[int, int, list[str], int]:
        maps = Path("/proc/self/maps").read_text().count("memfd:")
        shared = sorted(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else []  # noqa: PTH208
        return len(list(Path("/proc/self/fd").iterdir())), maps, shared, len(psutil.Process().children())

    with SandboxedReader(Limits(seconds=20), packages=faulty) as reader:
        reader.decode_clip(clip, **CUT)  # starts the thread that lasts
    before = left()
    with SandboxedReader(Limits(seconds=20), packages=faulty) as reader:
        for index in range(300):
            if index % 3:
                reader.decode_clip(clip, **{**CUT, "size": (512, 512) if index % 30 == 1 else (32, 32)})
            else:
                with pytest.raises(ClipError):
                    reader.call("faulty_decoder.crash" if index % 75 == 0 else "faulty_decoder.refuse", "a")
        assert psutil.Process(reader._child.process.pid).num_fds() < 8
    assert left() == before
    SandboxedReader(Limits(), packages=faulty).call("faulty_decoder.fine", "a")  # dropped, not closed
    assert left() == before
