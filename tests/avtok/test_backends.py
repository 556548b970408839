"""torchcodec and decord show the frames that PyAV shows, at the same times, or say why they cannot.

decord runs in a process of its own throughout, as everywhere. The bar for pixels: 4 levels of 255 for even
areas; on real pictures a mean of 4, where FFmpeg's fast conversions differ at edges of colour.
"""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from avtok.clock import frame_grid_s
from avtok.decode import decode_clip, probe
from avtok.media import ClipError, Limits
from avtok.reader import open_reader
from avtok.reading import with_torchcodec
from avtok.reading.picture import read_picture
from tests.avtok.picture_files import begin_at, numbered, numbers_of, turn, write_frames
from tests.avtok.test_picture_colour import PQ, hdr_file
from tests.avtok.test_picture_shape import INTERLACED, quarters, woven
from tests.avtok.test_picture_times import B_FRAMES, REGULAR, VARIABLE

if with_torchcodec.missing:
    pytest.skip(with_torchcodec.missing, allow_module_level=True)
pytest.importorskip("decord")

OTHERS = ["torchcodec", "decord"]
TIMES = REGULAR[:75]


@pytest.fixture(scope="module")
def readers():
    opened = {
        "torchcodec": open_reader("torchcodec", limits=None),
        "decord": open_reader("decord", limits=Limits(seconds=60)),
    }
    yield opened
    for reader in opened.values():
        reader.close()


def cut(reader, path, start_s=0.0, end_s=1.0, fps=12, size=(48, 72)) -> np.ndarray:
    settings = {"fps": fps, "size": size, "sample_rate": 16000}
    return reader.decode_clip(str(path), start_s=start_s, end_s=end_s, **settings).video_THWC


def ours(path, start_s=0.0, end_s=1.0, fps=12, size=(48, 72)) -> np.ndarray:
    return read_picture(str(path), frame_grid_s(start_s, end_s, fps=fps), size)


FILES = {
    "constant rate": lambda path: write_frames(path / "a.mp4", TIMES, numbered(75), options={"bf": "0"}),
    "frames between others": lambda path: write_frames(path / "a.mkv", TIMES, numbered(75), options=B_FRAMES),
    "variable rate": lambda path: write_frames(path / "a.mp4", VARIABLE, numbered(120), options=B_FRAMES),
    "late start": lambda path: write_frames(
        path / "a.mkv", [time + Fraction(7, 2) for time in TIMES], numbered(75), tick=Fraction(1, 1000)
    ),
    "aspect": lambda path: write_frames(path / "a.mkv", TIMES, numbered(75), aspect=Fraction(3, 2)),
    "ten bits": lambda path: write_frames(path / "a.mp4", TIMES, numbered(75), pix_fmt="yuv420p10le"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("backend", OTHERS)
def test_the_same_frame_is_shown_at_each_time(tmp_path, readers, backend, kind):
    path = FILES[kind](tmp_path)
    for start_s in (0.0, 1.3):
        expected = ours(path, start_s, start_s + 1)
        seen = cut(readers[backend], path, start_s, start_s + 1)
        assert numbers_of(seen) == numbers_of(expected)
        assert np.abs(seen.astype(int) - expected).max() <= 4  # greys; FFmpeg's fast conversions round down


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
@pytest.mark.parametrize("backend", OTHERS)
def test_a_picture_on_its_side_stands_up(tmp_path, readers, backend, matrix):
    path = write_frames(tmp_path / "a.mp4", TIMES, [quarters(64, 96)] * 75)
    turn(path, matrix)
    size = (48, 32) if matrix[0] == 0 else (32, 48)
    expected, seen = ours(path, size=size), cut(readers[backend], path, size=size)
    inside = (
        np.abs(seen.astype(int) - expected)[:, 4:12, 4:12],
        np.abs(seen.astype(int) - expected)[:, -9:-4, -9:-4],
    )
    assert max(part.max() for part in inside) <= 5


def test_torchcodec_follows_an_edit_list_and_decord_says_that_it_does_not(tmp_path, readers):
    path = write_frames(tmp_path / "a.mp4", TIMES, numbered(75), tick=Fraction(1, 30000))
    begin_at(path, 20 * 1000 + 2000)
    assert numbers_of(cut(readers["torchcodec"], path, fps=30)) == list(range(20, 50))
    with pytest.raises(ClipError, match="decord: it does not follow the edit list"):
        cut(readers["decord"], path)


def test_torchcodec_keeps_the_depth_that_tone_mapping_needs_and_decord_says_that_it_does_not(
    tmp_path, readers
):
    ramp_HWC = np.broadcast_to(np.linspace(0, 1, 96)[None, :, None], (64, 96, 3))
    path = hdr_file(tmp_path / "a.mkv", ramp_HWC, PQ)
    expected, seen = ours(path, 0, 0.5, fps=8), cut(readers["torchcodec"], path, 0, 0.5, fps=8)
    assert np.abs(seen.astype(int) - expected).max() <= 3
    with pytest.raises(ClipError, match="decord: it gives 8 bits"):
        cut(readers["decord"], path, 0, 0.5)


@pytest.mark.parametrize("backend", OTHERS)
def test_what_only_pyav_shows_rightly_is_refused_by_name(tmp_path, readers, backend):
    fields = write_frames(
        tmp_path / "fields.mp4", [Fraction(n, 25) for n in range(25)], woven(), options=INTERLACED
    )
    mirrored = write_frames(tmp_path / "mirrored.mp4", TIMES, numbered(75))
    turn(mirrored, (-1, 0, 0, 1))
    numbers = write_frames(tmp_path / "numbers.avi", TIMES, numbered(75), tick=Fraction(1, 30))
    for path, words in ((fields, "interlaced"), (mirrored, "mirrored"), (numbers, "numbers its frames")):
        with pytest.raises(ClipError, match=f"{words}.*use pyav"):
            cut(readers[backend], path, 0, 0.5)


@pytest.mark.parametrize("backend", OTHERS)
def test_a_cut_past_the_end_is_refused_as_pyav_refuses_it(tmp_path, readers, backend):
    path = write_frames(tmp_path / "a.mp4", TIMES, numbered(75))
    with pytest.raises(ClipError, match=r"ends at 2\.5\d\d s"):
        cut(readers[backend], path, 2.0, 4.0)


@pytest.mark.parametrize("backend", OTHERS)
def test_sound_is_the_same_with_every_backend(write_media, readers, backend):
    path = str(write_media("a.mp4", frame_times_s=TIMES, event_s=1.0))
    settings = {"start_s": 0.5, "end_s": 1.5, "fps": 12, "size": (48, 64), "sample_rate": 16000}
    with_other = readers[backend].decode_clip(path, **settings).audio_N
    assert np.abs(with_other - decode_clip(path, **settings).audio_N).max() < 1e-6


@pytest.mark.parametrize(
    ("backend", "fault", "words"),
    [
        (
            "torchcodec",
            "raise RuntimeError('Could not load libtorchcodec.\\nmore')",
            "Debian's package ffmpeg",
        ),
        ("torchcodec", "raise ModuleNotFoundError('No module named torchcodec')", "worldmodel[decoders]"),
        ("decord", "raise ModuleNotFoundError('No module named decord')", "worldmodel[decoders]"),
    ],
)
def test_a_backend_that_is_not_there_says_what_to_install(tmp_path, backend, fault, words):
    (tmp_path / f"{backend}.py").write_text(fault)
    path = write_frames(tmp_path / "a.mp4", TIMES, numbered(75))
    program = (
        "from avtok.decode import ClipError, decode_clip\n"
        f"try: decode_clip({str(path)!r}, start_s=0, end_s=1, fps=8, size=(32, 32), sample_rate=16000,"
        f" backend={backend!r})\n"
        "except ClipError as error: print(error)\n"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": f"{tmp_path}:{root / 'tokenizers'}", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.count("\n") == 1
    assert f"a.mp4: {backend}: {backend} " in said
    assert words in said


# What the real clips are refused for; all others show PyAV's frames.
REFUSED = {
    "torchcodec": {
        "flipped_bytes_from_friday.mp4",
        "gradio_b.avi",
        "roadtrip-vp92-10bit.webm",
        "sample_edit_list_no_sync_frame_before_edit.mp4",
        "sample_h262_mpeg_audio.ts",
        "sample_vvc.mp4",
        "tree.avi",
        "ts_cut_midpacket_from_friday.ts",
        "ts_discontinuity_from_friday.ts",
    },
    "decord": {
        "av1_video.mkv",
        "bt2020_10bit.mp4",
        "discard_first_keyframe.mp4",
        "dolbyVision-hdr.MOV",
        "flipped_bytes_from_friday.mp4",
        "gradio_b.avi",
        "hlg10-color-test.mp4",
        "roadtrip-vp92-10bit.webm",
        "sample_av1.mp4",
        "sample_edit_list.mp4",
        "sample_edit_list_no_sync_frame_before_edit.mp4",
        "sample_edit_list_only_preroll_sync_sample.mp4",
        "sample_h262_mpeg_audio.ts",
        "sample_vvc.mp4",
        "tree.avi",
        "ts_cut_midpacket_from_friday.ts",
        "ts_discontinuity_from_friday.ts",
    },
}


@pytest.mark.media
@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHERS)
def test_real_clips_show_the_same_frames(media_folder, readers, backend):
    refused = {}
    for path in sorted(
        path for name in ("awkward", "derived", "general") for path in (media_folder / name).glob("*")
    ):
        try:
            info = probe(str(path))
        except ClipError:
            continue
        if not info.has_video or info.duration_s == 0:
            continue
        end_s = min(info.duration_s, 1.5)
        expected = ours(path, 0, end_s, size=(64, 64))
        try:
            seen = cut(readers[backend], path, 0, end_s, size=(64, 64))
        except ClipError as error:
            refused[path.name] = str(error)
            continue
        for index, image_HWC in enumerate(seen.astype(float)):
            near = expected[max(0, index - 3) : index + 4]
            errors = np.abs(near - image_HWC).mean(axis=(1, 2, 3))
            own = errors[min(index, 3)]
            assert own <= errors.min() + 0.5, f"{path.name}: another frame at {index}"
            assert own < 4, path.name
    assert set(refused) == REFUSED[backend], refused
    assert not [said for said in refused.values() if f": {backend}" not in said and "use pyav" not in said]
