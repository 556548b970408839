"""Turns, mirrors, aspect, sizes, streams and fields: what is shown is what was meant."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from avtok.clock import frame_grid_s
from avtok.decode import probe
from avtok.media import ClipError
from avtok.reading.picture import read_picture
from tests.avtok.picture_files import numbered, numbers_of, turn, write_frames

TIMES = [Fraction(n, 25) for n in range(25)]
RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 40), (30, 40, 210), (235, 235, 235)
COLOURS = np.array([RED, GREEN, BLUE, WHITE])


def quarters(height: int, width: int) -> np.ndarray:
    """Red above, left; green above, right; blue below, left; white below, right."""
    image_HWC = np.zeros((height, width, 3), np.uint8)
    image_HWC[: height // 2, : width // 2], image_HWC[: height // 2, width // 2 :] = RED, GREEN
    image_HWC[height // 2 :, : width // 2], image_HWC[height // 2 :, width // 2 :] = BLUE, WHITE
    return image_HWC


def corners(image_HWC: np.ndarray) -> list[int]:
    """Which of COLOURS lies above left, above right, below left, below right."""
    height, width = image_HWC.shape[:2]
    places = [(y, x) for y in (height // 8, height * 7 // 8) for x in (width // 8, width * 7 // 8)]
    seen = [image_HWC[y, x].astype(int) for y, x in places]
    assert all(np.abs(COLOURS - colour).max(axis=1).min() < 12 for colour in seen)
    return [int(np.abs(COLOURS - colour).max(axis=1).argmin()) for colour in seen]


def first_image(path, size) -> np.ndarray:
    return read_picture(str(path), frame_grid_s(0, 0.5, fps=8), size)[0]


TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MIRRORS = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", TURNS + MIRRORS)
def test_a_display_matrix_puts_every_corner_where_it_says(tmp_path, matrix):
    path = write_frames(tmp_path / "a.mp4", TIMES, [quarters(64, 96)] * 25)
    turn(path, matrix)
    a, b, c, d = matrix
    places = {}
    for colour, (x, y) in enumerate([(-1, -1), (1, -1), (-1, 1), (1, 1)]):
        places[b * x + d * y, a * x + c * y] = colour
    size = (96, 64) if a == 0 else (64, 96)
    assert corners(first_image(path, size)) == [places[place] for place in sorted(places)]
    info = probe(str(path))
    assert (info.height, info.width) == size


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    path = write_frames(tmp_path / "a.mkv", TIMES, [quarters(64, 64)] * 25, aspect=Fraction(2))
    image_HWC = first_image(path, (64, 128))
    assert corners(image_HWC) == [0, 1, 2, 3]
    assert np.abs(image_HWC[16, 57].astype(int) - RED).max() < 12  # up to the middle of 128, not of a crop


@pytest.mark.parametrize("size", [(47, 63), (63, 47), (33, 33)])
def test_odd_sizes_are_whole_to_their_last_row(tmp_path, size):
    path = write_frames(tmp_path / "a.mkv", TIMES, [quarters(*size)] * 25, codec="ffv1")
    assert corners(first_image(path, size)) == [0, 1, 2, 3]
    assert np.abs(first_image(path, size)[-1, -1].astype(int) - WHITE).max() < 12


def test_ten_bits_are_rounded_to_eight_not_cut(tmp_path):
    path = write_frames(
        tmp_path / "a.mp4", TIMES, [quarters(64, 96)] * 25, pix_fmt="yuv420p10le", options={"crf": "1"}
    )
    assert probe(str(path)).bit_depth == 10
    assert corners(first_image(path, (64, 96))) == [0, 1, 2, 3]
    assert np.abs(first_image(path, (32, 48))[4, 4].astype(int) - RED).max() <= 3


def test_the_largest_picture_that_is_no_cover_is_read(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        streams = []
        for size, codec in (((32, 48), "libx264"), ((64, 96), "libx264"), ((128, 192), "mjpeg")):
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            streams.append(stream)
        streams[2].disposition = av.stream.Disposition.attached_pic
        for index in range(25):
            for level, stream in zip((60, 120, 200), streams, strict=True):
                if level == 200 and index:
                    continue
                image = np.full((stream.height, stream.width, 3), level, np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    assert abs(first_image(path, (64, 96)).mean() - 120) < 3


def test_a_sliver_is_refused(tmp_path):
    path = write_frames(tmp_path / "a.mkv", TIMES, [np.zeros((16, 4000, 3), np.uint8)] * 25)
    with pytest.raises(ClipError, match="4000x16 is too long"):
        first_image(path, (64, 64))


# Fields.


def moving_bar(half: int) -> np.ndarray:
    image_HWC = np.full((96, 128, 3), 30, np.uint8)
    image_HWC[:, 8 + half * 3 : 40 + half * 3] = 220
    return image_HWC


def woven() -> list[np.ndarray]:
    """25 frames of two fields each, the lower one first; the upper is half a frame later."""
    frames = []
    for index in range(25):
        image_HWC = moving_bar(2 * index % 24)
        image_HWC[::2] = moving_bar(2 * index % 24 + 1)[::2]
        frames.append(image_HWC)
    return frames


def combing(image_HWC: np.ndarray) -> float:
    rows_HW = image_HWC.astype(float).mean(axis=-1)
    return float(np.abs(rows_HW[1:-1] - (rows_HW[:-2] + rows_HW[2:]) / 2).max())


INTERLACED = {"crf": "4", "g": "5", "x264-params": "bff=1"}


def test_fields_are_made_whole_frames(tmp_path):
    path = write_frames(tmp_path / "a.mp4", TIMES, woven(), options=INTERLACED)
    assert probe(str(path)).is_interlaced
    video_THWC = read_picture(str(path), frame_grid_s(0, 0.9, fps=25), (96, 128))
    assert combing(woven()[5]) > 80
    assert max(combing(image_HWC) for image_HWC in video_THWC) < 20
    for index, image_HWC in enumerate(video_THWC[:10]):  # each keeps its time: that of its first field
        assert np.abs(image_HWC.astype(int) - moving_bar(2 * index))[:, 4:-4].mean() < 4


def test_a_cut_of_fields_equals_the_same_cut_of_the_whole(tmp_path):
    times_s = [Fraction(n, 25) for n in range(100)]
    path = str(write_frames(tmp_path / "a.mp4", times_s, woven() * 4, options=INTERLACED))
    whole = read_picture(path, frame_grid_s(0, 3.6, fps=25), (96, 128))
    for start in (75, 76, 79, 80, 82):
        part = read_picture(path, frame_grid_s(start / 25, start / 25 + 0.2, fps=25), (96, 128))
        assert np.array_equal(part, whole[start : start + 5])


def test_a_whole_frame_that_looks_woven_is_not_touched(tmp_path):
    path = write_frames(tmp_path / "a.mp4", TIMES, woven())
    video_THWC = read_picture(str(path), frame_grid_s(0, 0.9, fps=25), (96, 128))
    with av.open(str(path)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(video_THWC, plain[: len(video_THWC)])


@pytest.mark.media
def test_real_clips_that_lie_on_their_side_stand_up(media_folder):
    for name in (
        "decord_video_90.mov",
        "decord_video_180.mov",
        "nasa_13013_rotated.mp4",
        "portrait_4k60.mp4",
    ):
        path = str(media_folder / "awkward" / name)
        info = probe(path)
        image_HWC = read_picture(path, np.array([0.0]), (info.height // 4, info.width // 4))[0]
        with av.open(path) as container:
            frame = next(container.decode(video=0))
            flat = frame.reformat(frame.width // 4, frame.height // 4, "rgb24").to_ndarray()
            upright = np.rot90(flat, frame.rotation // 90)
        assert image_HWC.shape == upright.shape, name
        assert np.abs(image_HWC.astype(int) - upright).mean() < 5, name


def test_numbers_survive_the_codec(tmp_path):
    path = write_frames(tmp_path / "a.mp4", TIMES, numbered(25))
    assert numbers_of(read_picture(str(path), frame_grid_s(0, 1, fps=25), (48, 48))) == list(range(25))
