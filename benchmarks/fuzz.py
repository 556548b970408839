"""Broken files, read in the sandbox: the job never falls over, nothing hangs, nothing is lost without a word.

10,000 seeded faults over one small file of every common container and codec, and the small real clips where
they are. Each broken file is probed and its first second is cut.

`crashes`: the job fell over: an exception other than ClipError came out of a reader. Decoders that died on
the way are `child_crashes` in raw; each of them became a ClipError.

`hangs`: a call outlived its limit by five seconds.

`silent_losses`: a picture, a sound, or more than TOLERANCE_S of either that the whole file had is gone, and
`probe` gives no reason and raises nothing, although the broken file shows it: it declares more than its
packets deliver, a packet cannot be read or decoded or is marked corrupt, or a stream has no decoder. What it
shows is found by `shown_by`, which reads what an index may read (every packet, all sound, the first frame of
the picture) with code of its own.

Not counted, but listed in raw: `shorter`, files that are shorter where FFmpeg shows no trace of it (an ADTS
file cut between frames declares nothing, it is simply a shorter file), and `in_pictures`, those in which only
decoding every frame of the picture would show damage. A picture that the decoder patches up is no loss: time
and streams are what is held.

Prediction: 0, 0, 0. There is no bare limit: the figures are counts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avtok.media import ClipError, DecodedClip, Limits, MediaInfo
from avtok.reader import READING
from avtok.sandbox import SandboxedReader
from ray_jobs.bench import Measured
from ray_jobs.runtime_env import ROOT

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # the sandbox imports benchmarks.makers.shown_by, too

from benchmarks.makers.faults import break_file
from benchmarks.makers.small_files import write_small_files

CASES, SMOKE_CASES, SEED, PROCESSES = 10_000, 200, 5, 2
LIMITS = Limits(seconds=10.0, memory_mb=1024, max_pixels=4096 * 4096)
HANG_S = 5.0  # beyond the limit
TOLERANCE_S = 0.2
REAL_BYTES = 70_000
CUT = {"start_s": 0.0, "end_s": 1.0, "fps": 16, "size": (32, 32), "sample_rate": 16000}
SHOWN_BY = "benchmarks.makers.shown_by.shown_by"


@dataclass(frozen=True)
class Whole:
    """A file before it is broken."""

    name: str
    data: bytes
    info: MediaInfo


@dataclass
class Found:
    """What the cases of one process came to."""

    cases: int = 0
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    silent_losses: list[str] = field(default_factory=list)
    in_pictures: list[str] = field(default_factory=list)
    shorter: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    unforeseen: list[str] = field(default_factory=list)
    child_crashes: list[str] = field(default_factory=list)
    kills: int = 0
    slowest_s: float = 0.0


def run(smoke: bool) -> Measured:
    began = time.monotonic()
    found = fuzz(SMOKE_CASES if smoke else CASES, SEED)
    seconds = time.monotonic() - began
    figures = {
        "cases": found.cases,
        "crashes": len(found.crashes),
        "hangs": len(found.hangs),
        "silent_losses": len(found.silent_losses),
    }
    raw = {
        **{key: value for key, value in vars(found).items() if key != "cases"},
        "cases_per_s": found.cases / seconds,
    }
    config = {"seed": SEED, "limits": vars(LIMITS), "cut": CUT, "tolerance_s": TOLERANCE_S}
    return Measured(figures=figures, raw=raw, n=found.cases, config=json.dumps(config) + "\n")


def fuzz(num_cases: int, seed: int, *, processes: int = PROCESSES) -> Found:
    """Cases 0..num_cases of a seed; the same whatever the number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        wholes = whole_files(Path(folder) / "whole")
        shares = [range(start, num_cases, processes) for start in range(processes)]
        with ThreadPoolExecutor(processes) as threads:
            parts = list(threads.map(lambda share: _fuzz_share(share, seed, wholes, Path(folder)), shares))
    total = Found()
    for part in parts:
        for key, value in vars(part).items():
            mine = getattr(total, key)
            setattr(total, key, max(mine, value) if key == "slowest_s" else mine + value)
    return total


def whole_files(folder: Path) -> list[Whole]:
    """One of every kind, and small real clips; each is read without a complaint."""
    media = Path(os.environ.get("WORLDMODEL_MEDIA", ROOT.parent / "shared" / "media"))
    paths = write_small_files(folder)
    paths += [
        p for p in sorted(media.rglob("*")) if p.suffix != ".json" and 0 < p.stat().st_size < REAL_BYTES
    ]
    wholes = []
    with open_sandbox() as reader:
        for path in paths:
            try:
                info = reader.probe(str(path))
            except ClipError:
                continue  # real clips come with text beside them, and with broken ones
            if not info.reason:
                wholes.append(Whole(path.name, path.read_bytes(), info))
    return wholes


def open_sandbox() -> SandboxedReader:
    return SandboxedReader(LIMITS, packages=(*READING, "benchmarks.makers"))


def _fuzz_share(share: range, seed: int, wholes: list[Whole], folder: Path) -> Found:
    found = Found()
    others = [(whole.name, whole.data) for whole in wholes]
    with open_sandbox() as reader:
        for index in share:
            random = np.random.default_rng([seed, index])
            whole = wholes[random.integers(len(wholes))]
            kind, name, data = break_file(whole.name, whole.data, others, random)
            path = folder / f"{index}-{name}"
            path.write_bytes(data)
            _try_case(reader, whole, str(path), f"{kind} of {whole.name} (case {index})", found)
            path.unlink()
        found.kills = reader.num_kills
    return found


def _try_case(reader: SandboxedReader, whole: Whole, path: str, case: str, found: Found) -> None:
    found.cases += 1
    info = _timed(reader.probe, path, case, found)
    clip = _timed(lambda uri: reader.decode_clip(uri, **CUT), path, case, found)
    if info is None:
        found.outcomes["refused"] += 1
        return
    lost = loss(whole.info, info, clip)
    if not lost:
        found.outcomes["whole, with a reason" if info.reason else "whole"] += 1
    elif info.reason:
        found.outcomes["lost, with a reason"] += 1
    else:
        shown = _timed(lambda uri: reader.call(SHOWN_BY, uri), path, case, found)
        in_pictures = _timed(lambda uri: reader.call(SHOWN_BY, uri, every_picture=True), path, case, found)
        if shown:
            found.silent_losses.append(f"{case}: {lost}, shown by {shown}")
            found.outcomes["lost silently"] += 1
        elif in_pictures:
            found.in_pictures.append(f"{case}: {lost}, shown by {in_pictures}")
            found.outcomes["shorter, only pictures show it"] += 1
        else:
            found.shorter.append(f"{case}: {lost}")
            found.outcomes["shorter, nothing shows it"] += 1


def _timed(read: Any, path: str, case: str, found: Found) -> Any:
    """None where the file is refused."""
    began = time.monotonic()
    try:
        return read(path)
    except ClipError as error:
        said = str(error).replace(path, "")
        found.errors[_kind_of(said)] += 1
        if "reading failed" in said or "nonsense" in said:
            found.unforeseen.append(f"{case}{said}"[:300])
        if "died of" in said or "took more than" in said or "took longer" in said:
            found.child_crashes.append(f"{case}{said}"[:300])
        return None
    except Exception as error:  # this is what must not happen, and is counted
        found.crashes.append(f"{case}: {type(error).__name__}: {error}"[:300])
        return None
    finally:
        took_s = time.monotonic() - began
        found.slowest_s = max(found.slowest_s, took_s)
        if took_s > LIMITS.seconds + HANG_S:
            found.hangs.append(f"{case}: {took_s:.1f} s")


def _kind_of(said: str) -> str:
    words = said.removeprefix(": ").split(":")[0].split("(")[0]
    return " ".join(word for word in words.split() if not any(letter.isdigit() for letter in word))[:80]


def loss(whole: MediaInfo, info: MediaInfo, clip: DecodedClip | None) -> str:
    """What the whole file had and a broken one, or its cut, has not; empty for nothing."""
    if whole.has_video and not info.has_video:
        return "the picture"
    if whole.has_audio and not info.has_audio:
        return "the sound"
    for name in ("video", "audio"):
        had_s, has_s = span_s(whole, name), span_s(info, name)
        if has_s < had_s - TOLERANCE_S:
            return f"{name} from {had_s:.3f} s to {has_s:.3f} s"
    if clip is not None and info.has_video and clip.video_THWC is None:
        return "the picture of the cut"
    if clip is not None and info.has_audio and clip.audio_N is None:
        return "the sound of the cut"
    return ""


def span_s(info: MediaInfo, name: str) -> float:
    start_s, end_s = getattr(info, f"{name}_start_s"), getattr(info, f"{name}_end_s")
    return 0.0 if start_s is None or end_s is None else end_s - start_s
