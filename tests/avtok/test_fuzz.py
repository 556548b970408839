"""The fuzz benchmark counts what it says it counts, and a few of its cases on every run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from avtok.media import ClipError
from benchmarks import fuzz
from benchmarks.makers.faults import FAULTS, break_file
from benchmarks.makers.small_files import KINDS, write_small_files


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> fuzz.Whole:
    paths = write_small_files(tmp_path_factory.mktemp("whole"))
    path = next(path for path in paths if path.name == "h264-flac.mkv")
    with fuzz.open_sandbox() as reader:
        return fuzz.Whole(path.name, path.read_bytes(), reader.probe(str(path)))


def test_150_broken_files_cost_no_job_no_time_and_no_silence():
    found = fuzz.fuzz(150, seed=11)
    assert (found.cases, found.crashes, found.hangs, found.silent_losses) == (150, [], [], [])
    assert found.unforeseen == []
    assert set(found.outcomes) >= {"whole", "refused", "lost, with a reason"}


def test_every_kind_of_file_is_whole_before_it_is_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLDMODEL_MEDIA", str(tmp_path / "none"))
    wholes = fuzz.whole_files(tmp_path / "whole")
    assert {whole.name for whole in wholes} == {kind.name for kind in KINDS}
    for whole, kind in zip(wholes, KINDS, strict=True):
        assert (whole.info.has_video, whole.info.has_audio) == (bool(kind.picture), bool(kind.sound)), (
            whole.name
        )


@pytest.mark.parametrize("kind", FAULTS)
def test_the_same_seed_breaks_the_same_bytes(kind):
    data, others = bytes(range(256)) * 20, [("other.mkv", b"other" * 300)]
    once, again, else_ = (FAULTS[kind](data, others, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert once == again
    assert kind in ("zero_length", "wrong_extension") or once != data
    assert kind in ("zero_length", "wrong_extension", "concatenated") or once != else_


def test_a_fault_is_drawn_from_all_of_them():
    drawn = {
        break_file("a.mkv", b"data" * 99, [("b", b"x" * 99)], np.random.default_rng(seed))[0]
        for seed in range(200)
    }
    assert drawn == set(FAULTS)


class _Reader:
    """Stands for a reader that does what it should not."""

    def __init__(self, probe, cut=None, shown: str = "it declares more than it has"):
        self.probe = probe
        self.decode_clip = cut or (lambda uri, **cut: None)
        self.call = lambda function, uri, **how: shown


def _tried(reader, whole: fuzz.Whole) -> fuzz.Found:
    found = fuzz.Found()
    fuzz._try_case(reader, whole, "/x/a.mkv", "a fault", found)
    return found


def test_a_planted_silent_loss_is_counted(whole):
    half = replace(whole.info, audio_end_s=whole.info.audio_end_s / 2)
    assert len(_tried(_Reader(lambda uri: half), whole).silent_losses) == 1
    said = _tried(_Reader(lambda uri: replace(half, reason="cut short")), whole)
    assert (said.silent_losses, said.outcomes) == ([], {"lost, with a reason": 1})
    unseen = _tried(_Reader(lambda uri: half, shown=""), whole)
    assert (unseen.silent_losses, len(unseen.shorter)) == ([], 1)


@pytest.mark.parametrize("gone", ["has_video", "has_audio"])
def test_a_stream_that_is_gone_is_a_loss(whole, gone):
    assert len(_tried(_Reader(lambda uri: replace(whole.info, **{gone: False})), whole).silent_losses) == 1


def test_a_cut_without_the_picture_that_was_promised_is_a_loss(whole):
    clip = SimpleNamespace(video_THWC=None, audio_N=np.zeros(9))
    assert len(_tried(_Reader(lambda uri: whole.info, lambda uri, **cut: clip), whole).silent_losses) == 1


def test_a_job_that_falls_over_is_a_crash_and_a_clip_error_is_not(whole):
    def fall(uri):
        raise ValueError("no clip error")

    def refuse(uri):
        raise ClipError(f"{uri}: is not to my taste")

    assert len(_tried(_Reader(fall), whole).crashes) == 1
    refused = _tried(_Reader(refuse), whole)
    assert (refused.crashes, refused.outcomes) == ([], {"refused": 1})


def test_a_call_that_outlives_its_limit_is_a_hang(whole, monkeypatch):
    monkeypatch.setattr(fuzz, "HANG_S", -fuzz.LIMITS.seconds)
    assert len(_tried(_Reader(lambda uri: whole.info), whole).hangs) == 2  # the probe and the cut


def test_the_loss_is_silent_without_the_reason_of_probe(whole, tmp_path):
    path = tmp_path / "short.mkv"
    path.write_bytes(whole.data[: len(whole.data) // 2])
    with fuzz.open_sandbox() as reader:
        assert "declared" in reader.probe(str(path)).reason
        reader_without = _Reader(lambda uri: replace(reader.probe(str(path)), reason=""))
        reader_without.call = lambda function, uri, **how: reader.call(function, str(path), **how)
        assert len(_tried(reader_without, whole).silent_losses) == 1
