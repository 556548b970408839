"""One interface, in this process or in one that can be killed; media.Limits mirrors the configuration."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from avtok.media import Limits, MediaInfo
from avtok.mux import write_clip
from avtok.reader import PlainReader, find_function, open_reader
from avtok.sandbox import SandboxedReader
from worldmodel.config import LimitsConfig

CUT = {"start_s": 0.0, "end_s": 1.0, "fps": 16, "size": (32, 32), "sample_rate": 16000}


def test_limits_are_those_of_the_configuration():
    assert asdict(Limits()) == LimitsConfig().model_dump()


def test_limits_choose_the_sandbox():
    with open_reader("pyav", limits=Limits()) as sandboxed, open_reader("torchcodec", limits=None) as plain:
        assert isinstance(sandboxed, SandboxedReader)
        assert isinstance(plain, PlainReader)
        assert (sandboxed.backend, plain.backend) == ("pyav", "torchcodec")


def test_decord_is_refused_without_a_sandbox():
    with pytest.raises(ValueError, match=r"set data\.sandbox to true"):
        open_reader("decord", limits=None)
    open_reader("decord", limits=Limits()).close()


def test_an_unknown_decoder_is_named():
    with pytest.raises(ValueError, match="no decoder is named 'pyva'; there is pyav, torchcodec, decord"):
        open_reader("pyva", limits=None)


@pytest.mark.parametrize("limits", [None, Limits()])
def test_either_reader_probes_cuts_and_calls(tmp_path, limits):
    path = str(tmp_path / "a.mp4")
    write_clip(path, np.full((32, 64, 64, 3), 90, np.uint8), None, fps=16, sample_rate=16000)
    with open_reader(limits=limits) as reader:
        assert reader.probe(path).duration_s == 2.0
        assert abs(reader.decode_clip(path, **CUT).video_THWC.astype(int) - 90).max() < 4
        called = reader.call("avtok.reading.probe.probe_media", path)
        assert isinstance(called, MediaInfo)
        assert called == reader.probe(path)


@pytest.mark.parametrize(
    "name", ["os.system", "avtok.readings.x.f", "avtok.mux.write_clip", "avtok.decode._f", ""]
)
def test_what_is_private_or_elsewhere_is_not_called(name):
    with pytest.raises(ValueError, match="public functions of"):
        find_function(name, ("avtok.reading", "avtok.decode"))
