"""Flash and click come back at their time from real files of every kind; loaders that count fail at it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from benchmarks.makers.flash_click import LOUDNESS, Case, ricker, write_flash_click
from benchmarks.makers.flash_click_cases import VALUES, covering, family
from benchmarks.makers.flash_click_found import click_index, measured
from benchmarks.makers.flash_click_kinds import CONTAINERS, FRAME_RATES, OFFSETS_S, SAMPLE_RATES

MOST_FRAMES, MOST_SAMPLES = 1.0, 1.0
MOST_MOVED_S = {"avi": 0.25, "mxf": 0.0}  # AVI shows priming as pictures; elsewhere a millisecond is cut off


@pytest.fixture(scope="module")
def sample_rows(tmp_path_factory) -> list[dict]:
    """Short files, and ten seconds where they are quickly written."""
    folder = tmp_path_factory.mktemp("flash_click")
    short = [case for case in family() if case.event == "early"][::5]
    deep = [case for case in family() if case.event == "deep" and is_quick(case)][::9]
    return [measured(case, folder) for case in short] + [measured(case, folder, loaders={}) for case in deep]


def is_quick(case: Case) -> bool:
    has_few_frames = case.frame_rate in ("23.976", "24", "25", "29.97", "phone")
    return has_few_frames and case.sample_rate <= 48000 and case.layout != "16"


def misses(rows: list[dict]) -> list[str]:
    """What is not within the contract, in words."""
    said = []
    for row in rows:
        if row["reason"]:
            said.append(f"{row['name']}: {row['reason']}")
        elif abs(row["picture_error_frames"]) > MOST_FRAMES:
            said.append(f"{row['name']}: picture {row['picture_error_frames']:+.2f} frames")
        elif row["sound_error_beyond_clock_samples"] > MOST_SAMPLES:
            said.append(f"{row['name']}: sound {row['sound_error_samples']:+.2f} samples")
    return said


def test_flash_and_click_come_back_within_the_contract(sample_rows):
    assert len(sample_rows) >= 40
    assert misses(sample_rows) == []


@pytest.mark.slow
def test_a_third_of_the_family_is_within_the_contract(tmp_path):
    """`worldmodel bench sync` measures all of it, in three minutes."""
    assert len(family()) >= 200
    assert misses([measured(case, tmp_path) for case in family()[1::3]]) == []


@pytest.mark.parametrize("loader", ["nominal", "zero_based"])
def test_loaders_that_count_are_not(sample_rows, loader):
    read = [row[loader] for row in sample_rows if "reason" not in row.get(loader, {"reason": ""})]
    assert len(read) > 20
    drifts_ms = [abs(row["sound_error_ms"] - row["picture_error_ms"]) for row in read]
    assert max(drifts_ms) > 500
    assert np.mean(np.array(drifts_ms) > 1000 / 24) > 0.25


def test_the_family_is_large_and_every_value_meets_every_other():
    cases = family()
    assert len({case.name for case in cases}) == len(cases) >= 200
    assert {(case.frame_rate, case.sample_rate) for case in cases} == set(product(FRAME_RATES, SAMPLE_RATES))
    assert {(case.sample_rate, case.audio_offset_s) for case in cases} == set(
        product(SAMPLE_RATES, OFFSETS_S)
    )
    assert {(case.frame_rate, case.target_fps) for case in cases} == set(product(FRAME_RATES, (16, 24)))
    for container, kind in CONTAINERS.items():
        ours = [case for case in cases if case.container == container]
        assert {case.audio_codec for case in ours} == set(kind.sound), container
        assert {case.video_codec for case in ours} == set(kind.video), container
        assert {case.event for case in ours} == {"early", "deep"}, container
    for factor, values in VALUES.items():
        assert {getattr(case, factor) for case in covering()} == set(values), factor


def test_what_a_file_says_is_near_what_was_meant(tmp_path):
    for case in (case for case in family()[::7] if case.event == "early"):
        written = write_flash_click(case, tmp_path / f"a.{CONTAINERS[case.container].suffix}")
        assert abs(written.moved_s) <= MOST_MOVED_S.get(case.container, 1e-3), case.name
        assert -0.1 < written.heard_priming_s < 0.15, case.name


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_a_click_is_found_to_a_few_hundredths_of_a_sample(rate):
    rng = np.random.default_rng(0)
    for place in rng.uniform(0.3, 0.7, 20):
        noise_N = rng.normal(0, 1e-3, rate)
        audio_N = LOUDNESS * ricker(np.arange(rate) / rate - place) + noise_N
        assert abs(click_index(audio_N, rate) - place * rate) < 0.04


def test_a_file_without_a_click_is_no_hit():
    with pytest.raises(ValueError, match="loudest click"):
        click_index(np.random.default_rng(0).normal(0, 0.02, 16000), 16000)


def test_the_measure_sees_a_reader_that_is_wrong(tmp_path, monkeypatch):
    case = next(case for case in family() if case.container == "mkv" and case.event == "early")
    from benchmarks.makers import flash_click_found as found

    right = found.decode_clip

    def late(*args, **settings):
        clip = right(*args, **settings)
        return replace(clip, audio_N=np.roll(clip.audio_N, case.target_rate // 100))

    monkeypatch.setattr(found, "decode_clip", late)
    assert misses([measured(case, tmp_path)])
