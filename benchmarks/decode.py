"""What reading by timestamps costs over a bare PyAV loop, and seeking over torchcodec; one thread each.

stage_over_bare: whole files become frames of the size that training takes and sound at 16 kHz, as a decode
actor does it, in the sandbox, each file as if never seen before; over a loop that opens, demuxes, decodes,
scales with the same filter and resamples, and keeps no time. Rates, so 1 is as fast; each file counts alike.
seek_over_torchcodec: a second of picture and sound at random places of a film of two minutes, opened anew, in
the stored size; over torchcodec's decoders in their faster mode. Times, so 1 is as fast.
decode_peak_bytes_over_pixels: how far memory rises in a process that cuts 4 s of 1920x1080, over the bytes of
the frames that come back.

Prediction: .9, .9 and 1.2. Timestamps cost a comparison a frame; the sandbox a copy of what is small; frames
are scaled into their place in the result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import av
import numpy as np

from avtok.decode import decode_clip
from avtok.media import Limits
from avtok.reader import open_reader
from ray_jobs.bench import Measured

PAIRS, SMOKE_PAIRS, SEEKS = 9, 5, 24
SECONDS, FILM_SECONDS, CUT_S = 8, 120, 1.0
FILES = {  # name -> stored height, width, frames/s and the size that training takes
    "64x64": (64, 64, 16, (64, 64)),
    "360p": (360, 640, 30, (256, 256)),
    "720p": (720, 1280, 30, (256, 256)),
    "1080p": (1080, 1920, 30, (256, 256)),
}
RATE = 16000


def run(smoke: bool) -> Measured:
    seconds, film_s = (2, 12) if smoke else (SECONDS, FILM_SECONDS)
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-decode-") as name:
        folder = Path(name)
        for file, (height, width, fps, _) in FILES.items():
            write_film(folder / f"{file}.mp4", (height, width), fps, seconds)
        write_film(folder / "film.mp4", (720, 1280), 30, film_s)
        write_film(folder / "peak.mp4", (1080, 1920), 30, 5)
        stage = _stage_pairs(folder, seconds, SMOKE_PAIRS if smoke else PAIRS)
        seeks, why = _seek_pairs(folder / "film.mp4", film_s, SMOKE_PAIRS if smoke else SEEKS)
        peak = _peak(folder / "peak.mp4")
    rounds = [geometric_mean(row[f]["bare_s"] / row[f]["stage_s"] for f in FILES) for row in stage]
    return Measured(
        figures={
            "stage_over_bare": median(rounds),
            "seek_over_torchcodec": median(p["ours_s"] / p["torchcodec_s"] for p in seeks) if seeks else None,
            "decode_peak_bytes_over_pixels": peak,
        },
        raw={
            "stage": stage,
            "stage_over_bare_by_file": {
                f: median(row[f]["bare_s"] / row[f]["stage_s"] for row in stage) for f in FILES
            },
            "plain_over_bare_by_file": {
                f: median(row[f]["bare_s"] / row[f]["plain_s"] for row in stage) for f in FILES
            },
            "seek": seeks,
            "seek_skipped": why,
        },
        n=len(rounds),
        baseline={f: median(row[f]["bare_s"] for row in stage) for f in FILES},
        config=json.dumps({"files": FILES, "seconds": seconds, "film_s": film_s}) + "\n",
    )


def write_film(path: Path, size: tuple[int, int], fps: int, seconds: float) -> None:
    """H.264 and AAC: soft noise that drifts, so that motion and residuals cost what films cost."""
    height, width = size
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (height // 16 + 8, width // 16 + 64, 3), dtype=np.uint8)
    field = np.kron(coarse, np.ones((16, 16, 1), np.uint8))
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23"})
        picture.height, picture.width, picture.pix_fmt = height, width, "yuv420p"
        sound = container.add_stream("aac", rate=48000, layout="stereo")
        tone_N = 0.2 * np.sin(np.arange(48000) * 2 * np.pi * 330 / 48000) * np.linspace(1, 0.1, 48000)
        for number in range(round(seconds * fps)):
            left, top = 3 * number % (16 * 50), 2 * number % (16 * 6)
            image = field[top : top + height, left : left + width] ^ np.uint8(number % 7)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(picture.encode(frame))
            if number % fps == 0:
                both = np.repeat(tone_N[None].astype(np.float32), 2, axis=0)
                piece = av.AudioFrame.from_ndarray(both, format="fltp", layout="stereo")
                piece.sample_rate, piece.pts = 48000, number // fps * 48000
                piece.time_base = Fraction(1, 48000)
                container.mux(sound.encode(piece))
        container.mux(picture.encode(None))
        container.mux(sound.encode(None))


def bare_loop(path: Path, size: tuple[int, int]) -> int:
    """What any reader must do; how many frames and samples came out."""
    images, samples = [], []
    with av.open(str(path)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        picture.codec_context.thread_count = sound.codec_context.thread_count = 1
        scale = max(size[0] / picture.height, size[1] / picture.width)
        height, width = round(picture.height * scale), round(picture.width * scale)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        for packet in container.demux(picture, sound):
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    rgb = frame.reformat(width, height, "rgb24", interpolation="AREA", threads=1)
                    left = (width - size[1]) // 2
                    images.append(rgb.to_ndarray()[: size[0], left : left + size[1]])
                else:
                    samples += [each.to_ndarray() for each in resampler.resample(frame)]
    return len(np.stack(images)) + np.concatenate(samples, axis=1).shape[1]


def _stage_pairs(folder: Path, seconds: float, pairs: int) -> list[dict[str, dict[str, float]]]:
    rows = []
    with open_reader(limits=Limits()) as sandboxed, open_reader(limits=None) as plain:
        for number in range(pairs + 1):
            row = {}
            for file, (_, _, fps, size) in FILES.items():
                path = folder / f"{file}.mp4"
                cut = {"start_s": 0.0, "end_s": float(seconds), "fps": fps, "size": size, "sample_rate": RATE}
                calls: list[tuple[str, Callable[[], Any]]] = [
                    ("stage_s", lambda path=path, cut=cut: sandboxed.decode_clip(str(path), **cut)),
                    ("bare_s", lambda path=path, size=size: bare_loop(path, size)),
                    ("plain_s", lambda path=path, cut=cut: plain.decode_clip(str(path), **cut)),
                ]
                calls = calls if number % 2 else calls[::-1]
                row[file] = {name: _seconds(path, call) for name, call in calls}
            rows.append(row)
    return rows[1:]  # the first starts the sandbox and fills the caches of files


def _seconds(path: Path, call: Callable[[], Any]) -> float:
    """With a new time of change, what is known of the file is known no more."""
    os.utime(path)
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _seek_pairs(film: Path, seconds: float, pairs: int) -> tuple[list[dict[str, float]], str]:
    """Pairs of seconds for one cut, or why there are none."""
    try:
        from torchcodec.decoders import AudioDecoder, VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        return (
            [],
            f"torchcodec cannot be loaded: {str(error).splitlines()[0]}; install Debian's package ffmpeg",
        )

    def torchcodec(start_s: float, mode: str) -> None:
        picture = VideoDecoder(film, seek_mode=mode, num_ffmpeg_threads=1)
        picture.get_frames_played_at([start_s + number / 30 for number in range(round(CUT_S * 30))])
        AudioDecoder(film, sample_rate=RATE, num_channels=1).get_samples_played_in_range(
            start_s, start_s + CUT_S
        )

    def ours(start_s: float) -> None:
        cut = {"start_s": start_s, "end_s": start_s + CUT_S, "fps": 30, "sample_rate": RATE}
        decode_clip(str(film), size=(720, 1280), **cut)

    random, rows = np.random.default_rng(1), []
    for _ in range(pairs + 1):
        start_s = round(float(random.uniform(2, seconds - 2)), 3)
        row = {
            "start_s": start_s,
            "approximate_s": _seconds(film, lambda at=start_s: torchcodec(at, "approximate")),
            "ours_s": _seconds(film, lambda at=start_s: ours(at)),
            "exact_s": _seconds(film, lambda at=start_s: torchcodec(at, "exact")),
        }
        rows.append(row | {"torchcodec_s": min(row["approximate_s"], row["exact_s"])})
    return rows[1:], ""


def _peak(film: Path) -> float:
    done = subprocess.run([sys.executable, __file__, str(film)], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _measure_peak(film: str) -> float:
    """After a small cut, so that what libraries take once does not count."""
    cut = {"fps": 30, "sample_rate": RATE}
    decode_clip(film, start_s=0.0, end_s=0.1, size=(64, 64), **cut)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    clip = decode_clip(film, start_s=0.0, end_s=4.0, size=(1080, 1920), **cut)
    assert clip.video_THWC is not None, "the film has a picture"
    return (_memory("VmHWM") - before) / clip.video_THWC.nbytes


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    print(_measure_peak(sys.argv[1]))
