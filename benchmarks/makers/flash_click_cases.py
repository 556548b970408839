"""Which flash-and-click files are made: a covering design, in which every value meets every other it can."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, product
from typing import Any

from benchmarks.makers.flash_click import Case
from benchmarks.makers.flash_click_kinds import (
    CONTAINERS,
    FRAME_RATES,
    LAYOUTS,
    OFFSETS_S,
    SAMPLE_RATES,
    SOUND_CODECS,
    VIDEO_CODECS,
)

VALUES: dict[str, tuple[Any, ...]] = {
    "container": tuple(CONTAINERS),
    "video_codec": tuple(VIDEO_CODECS),
    "audio_codec": tuple(SOUND_CODECS),
    "frame_rate": tuple(FRAME_RATES),
    "sample_rate": SAMPLE_RATES,
    "layout": tuple(LAYOUTS),
    "audio_offset_s": OFFSETS_S,
    "start_s": (0.0, 10.0),
    "event": ("early", "deep"),
    "target_fps": (16, 24),
    "target_rate": (16000, 48000),
}
FACTORS = tuple(VALUES)
STANDARD_RATES = ("23.976", "24", "25", "29.97", "30", "50", "59.94", "60")
MXF_RATES = ("25", "29.97", "50", "59.94")

Pair = tuple[str, Any, str, Any]


def _allowed(chosen: dict[str, Any]) -> bool:
    """Whether what is chosen so far goes together."""
    kind = CONTAINERS.get(chosen.get("container", ""))
    sound = SOUND_CODECS.get(chosen.get("audio_codec", ""))
    video = VIDEO_CODECS.get(chosen.get("video_codec", ""))
    frames, rate, layout = chosen.get("frame_rate"), chosen.get("sample_rate"), chosen.get("layout")
    if sound and ((rate and rate not in sound.sample_rates) or (layout and layout not in sound.layouts)):
        return False
    if video and video.steady_only and frames and frames not in STANDARD_RATES:
        return False
    if kind is None:
        return True
    if (video and chosen["video_codec"] not in kind.video) or (
        sound and chosen["audio_codec"] not in kind.sound
    ):
        return False
    if chosen.get("audio_offset_s", 0.0) not in kind.offsets or chosen.get("start_s", 0.0) not in kind.starts:
        return False
    if kind.counts_frames and frames and not hasattr(FRAME_RATES[frames], "numerator"):
        return False
    if chosen["container"] == "ogg" and sound and chosen["audio_codec"] == "flac":  # always from sample 0
        return chosen.get("audio_offset_s", 0.0) <= 0
    return _allowed_by_muxer(chosen["container"], chosen.get("audio_codec"), frames, rate, layout)


def _allowed_by_muxer(
    container: str, sound: str | None, frames: str | None, rate: int | None, layout: str | None
) -> bool:
    if container == "mxf":
        return (frames is None or frames in MXF_RATES) and rate in (None, 48000) and layout != "16"
    if container == "avi" and layout == "16":  # FFmpeg reads more than 31 bytes one sample at a time: minutes
        return sound in (None, "pcm8")
    if container == "flv" and rate and sound in ("aac", "mp3"):
        return rate in (11025, 22050, 44100) if sound == "mp3" else True
    if container in ("mp4", "mp4fine", "fmp4") and rate and sound == "mp3":
        return rate >= 16000
    return True


@lru_cache(maxsize=1)
def covering(seed: int = 0) -> tuple[Case, ...]:
    """Every pair of values of two factors that can stand together stands in some case."""
    rng = random.Random(seed)
    missing = {pair for pair in _all_pairs() if _completed(_given(pair), rng, set()) is not None}
    cases: list[Case] = []
    for wanted in sorted(missing, key=repr):
        if wanted in missing:
            chosen = _completed(_given(wanted), rng, missing)
            assert chosen is not None, "it could be completed above"
            missing -= set(_pairs_of(chosen))
            cases.append(Case(**chosen, seed=len(cases)))
    return tuple(cases)


def _all_pairs() -> Iterator[Pair]:
    for one, other in combinations(FACTORS, 2):
        for value, other_value in product(VALUES[one], VALUES[other]):
            yield one, value, other, other_value


def _given(pair: Pair) -> dict[str, Any]:
    return {pair[0]: pair[1], pair[2]: pair[3]}


def _pairs_of(chosen: dict[str, Any]) -> Iterator[Pair]:
    known = [factor for factor in FACTORS if factor in chosen]
    for one, other in combinations(known, 2):
        yield one, chosen[one], other, chosen[other]


def _completed(chosen: dict[str, Any], rng: random.Random, missing: set[Pair]) -> dict[str, Any] | None:
    """A value for every factor, preferring those that bring missing pairs; None if none fits."""
    if not _allowed(chosen):
        return None
    factor = next((factor for factor in FACTORS if factor not in chosen), None)
    if factor is None:
        return chosen
    options = [{**chosen, factor: value} for value in rng.sample(VALUES[factor], len(VALUES[factor]))]
    for option in sorted(options, key=lambda option: -_gain(option, factor, missing)):
        complete = _completed(option, rng, missing)
        if complete is not None:
            return complete
    return None


def _gain(chosen: dict[str, Any], factor: str, missing: set[Pair]) -> int:
    if not missing:
        return 0
    return sum(pair in missing for pair in _pairs_of(chosen) if factor in (pair[0], pair[2]))


def plain() -> tuple[Case, ...]:
    """Every sound codec in every container as most files are: both streams from 0, cut deep in the file."""
    cases = []
    for container, kind in CONTAINERS.items():
        for index, sound in enumerate(kind.sound):
            codec = SOUND_CODECS[sound]
            rates = [rate for rate in (48000, 44100, 22050) if rate in codec.sample_rates]
            chosen: dict[str, Any] = {
                **{"container": container, "video_codec": kind.video[index % len(kind.video)]},
                **{
                    "audio_codec": sound,
                    "frame_rate": "29.97",
                    "layout": codec.layouts[-1 if index % 2 else 0],
                },
                **{"audio_offset_s": 0.0, "start_s": 0.0, "event": "deep"},
                **{"target_fps": 24 if index % 2 else 16, "target_rate": 16000 if index % 3 else 48000},
            }
            rate = next((rate for rate in rates if _allowed({**chosen, "sample_rate": rate})), None)
            if rate is not None:
                cases.append(Case(**chosen, sample_rate=rate, seed=1000 + len(cases)))
    return tuple(cases)


def family() -> tuple[Case, ...]:
    return (*covering(), *plain())
