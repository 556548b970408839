"""Colours come back as the file says they are: matrices, ranges, high dynamic range, wide gamuts."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from avtok.decode import probe
from avtok.reading import tone
from avtok.reading.picture import read_picture
from tests.avtok.picture_files import write_planes

# H W pixels, C channels, K colours.

BT601, BT709, BT2020 = (0.299, 0.114), (0.2126, 0.0722), (0.2627, 0.0593)  # shares of red and blue in luma
LIMITED, FULL = 1, 2
TAGS = {BT601: {"colorspace": 6}, BT709: {"colorspace": 1}, BT2020: {"colorspace": 9, "color_primaries": 1}}
COLOURS_KC = np.array(
    [
        (20, 20, 20),
        (230, 230, 230),
        (200, 40, 30),
        (40, 180, 60),
        (30, 50, 210),
        (220, 200, 40),
        (128, 90, 160),
    ]
)
PATCH = 16


def patches(colours_KC: np.ndarray) -> np.ndarray:
    return np.repeat(np.repeat(colours_KC[None], PATCH, axis=0), PATCH, axis=1)


def colours_of(image_HWC: np.ndarray, count: int) -> np.ndarray:
    middle_WC = image_HWC[image_HWC.shape[0] // 2].astype(int)
    width = len(middle_WC) // count
    return middle_WC[width // 2 :: width][:count]


def yuv_planes(rgb_HWC: np.ndarray, matrix: tuple[float, float], color_range: int, bits: int = 8) -> list:
    """The planes of 4:4:4 by the formulas of BT.601, BT.709 and BT.2020, rgb in [0, 1]."""
    red, blue = matrix
    luma_HW = rgb_HWC @ np.array([red, 1 - red - blue, blue])
    cb_HW = (rgb_HWC[..., 2] - luma_HW) / (2 * (1 - blue))
    cr_HW = (rgb_HWC[..., 0] - luma_HW) / (2 * (1 - red))
    scale = 1 << (bits - 8)
    y, c, low = (
        (219 * scale, 224 * scale, 16 * scale) if color_range == LIMITED else ((256 * scale - 1,) * 2 + (0,))
    )
    planes = [low + y * luma_HW, 128 * scale + c * cb_HW, 128 * scale + c * cr_HW]
    return [np.round(plane).astype(np.uint8 if bits == 8 else np.uint16) for plane in planes]


def read(path, size) -> np.ndarray:
    return read_picture(str(path), np.array([0.1]), size)[0]


@pytest.mark.parametrize("matrix", [BT601, BT709, BT2020], ids=["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("color_range", [LIMITED, FULL], ids=["limited", "full"])
@pytest.mark.parametrize("scale", [1, 2], ids=["same size", "half size"])
def test_known_colours_come_back_by_their_own_matrix_and_range(tmp_path, matrix, color_range, scale):
    planes = yuv_planes(patches(COLOURS_KC) / 255, matrix, color_range)
    path = write_planes(tmp_path / "a.mkv", planes, "yuv444p", color_range=color_range, **TAGS[matrix])
    size = (PATCH // scale, PATCH * len(COLOURS_KC) // scale)
    assert np.abs(colours_of(read(path, size), len(COLOURS_KC)) - COLOURS_KC).max() <= 3


def test_untagged_colours_are_bt601_of_limited_range_at_any_size(tmp_path):
    rgb_HWC = np.repeat(patches(COLOURS_KC), 50, axis=0)  # 800 rows: elsewhere taken for BT.709
    path = write_planes(tmp_path / "a.mkv", yuv_planes(rgb_HWC / 255, BT601, LIMITED), "yuv444p", count=3)
    size = (800, PATCH * len(COLOURS_KC))
    assert np.abs(colours_of(read(path, size), len(COLOURS_KC)) - COLOURS_KC).max() <= 3


def test_colour_keeps_its_full_width_when_the_picture_is_scaled(tmp_path):
    """Packed pixels of FFmpeg share their colour in pairs."""
    colours_KC = np.array([(220, 30, 30), (30, 40, 210)] * 8)
    rgb_HWC = np.repeat(np.repeat(colours_KC[None], 32, axis=0), 2, axis=1)
    path = write_planes(tmp_path / "a.mkv", yuv_planes(rgb_HWC / 255, BT601, LIMITED), "yuv444p")
    assert np.abs(read(path, (16, 16))[8].astype(int) - colours_KC).max() <= 3


# High dynamic range.

PQ, HLG = 16, 18


def hdr_file(path, codes_HWC, transfer: int):
    planes = yuv_planes(codes_HWC, BT2020, LIMITED, bits=10)
    tags = {"colorspace": 9, "color_range": LIMITED, "color_trc": transfer, "color_primaries": 9}
    return write_planes(path, planes, "yuv444p10le", **tags)


def hlg_code(scene: np.ndarray) -> np.ndarray:
    """The OETF of BT.2100, table 5, written from the other side than the code under test."""
    a, b, c = 0.17883277, 1 - 4 * 0.17883277, 0.5 - 0.17883277 * np.log(4 * 0.17883277)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


@pytest.mark.parametrize("transfer", [PQ, HLG], ids=["pq", "hlg"])
@pytest.mark.parametrize("scale", [1, 2], ids=["same size", "half size"])
def test_a_grey_ramp_stays_grey_and_rises(tmp_path, transfer, scale):
    ramp_HWC = np.repeat(np.broadcast_to(np.linspace(0, 1, 32)[None, :, None], (8, 32, 3)), 4, axis=1)
    path = hdr_file(tmp_path / "a.mkv", np.repeat(ramp_HWC, 2, axis=0), transfer)
    assert probe(str(path)).is_hdr
    ramp_WC = colours_of(read(path, (16 // scale, 128 // scale)), 32)
    assert np.ptp(ramp_WC, axis=1).max() <= 1
    assert (np.diff(ramp_WC[:, 1]) >= 0).all()
    assert ramp_WC[0, 1] == 0
    assert ramp_WC[-1, 1] == 255
    assert len(set(ramp_WC[:, 1].tolist())) > 18


def test_reference_white_lands_where_it_is_stated_in_both_systems(tmp_path):
    hlg = np.full((16, 16, 3), 0.75)  # BT.2408: 203 cd/m2 on a screen of 1000
    pq = np.full((16, 16, 3), float(tone.pq_code(np.array(203.0))))
    for name, codes_HWC, transfer in (("hlg.mkv", hlg, HLG), ("pq.mkv", pq, PQ)):
        image_HWC = read(hdr_file(tmp_path / name, codes_HWC, transfer), (16, 16))
        assert np.abs(image_HWC.astype(int) - tone.REFERENCE_WHITE).max() <= 1, name


def test_the_curves_are_those_of_the_standard():
    """Points of BT.2100 and BT.2408."""
    codes = tone.pq_code(np.array([0.0, 100.0, 203.0, 1000.0, 10000.0]))
    assert codes == pytest.approx([0, 0.508, 0.581, 0.752, 1], abs=1e-3)
    assert tone.pq_nits(codes) == pytest.approx([0, 100, 203, 1000, 10000], rel=1e-9)
    nits = np.geomspace(0.1, 1000, 400)
    shown = tone.tone_nits(nits)
    assert np.allclose(shown[nits < 88], nits[nits < 88])
    assert (np.diff(shown) > 0).all()
    assert shown[-1] == pytest.approx(203)
    scene = hlg_code(np.linspace(0, 1, 50))
    grey_C = tone.to_sdr(
        np.round(scene[None, :, None] * 65535).astype(np.uint16).repeat(3, 2), "hlg", "bt2020"
    )
    light = 1000 * np.linspace(0, 1, 50) ** 1.2
    expected = 255 * (tone.tone_nits(np.maximum(light, 1e-9)) / 203) ** (1 / 2.4)
    assert np.abs(grey_C[0, :, 0] - expected).max() <= 1


def hue_of(rgb_C) -> float:
    return 360 * colorsys.rgb_to_hsv(*[(value / 255) ** 2.4 for value in rgb_C])[0]


@pytest.mark.parametrize("nits", [60.0, 200.0, 700.0])
@pytest.mark.parametrize(
    "colour", [(1, 0.1, 0.1), (0.1, 1, 0.1), (0.1, 0.1, 1), (1, 0.7, 0.1), (0.2, 0.9, 1)]
)
def test_a_saturated_colour_keeps_its_hue_at_any_brightness(tmp_path, colour, nits):
    """Given as light in BT.709, so that the hue is known; stored as PQ in BT.2020."""
    to_bt2020 = np.linalg.inv(np.array(tone._TO_BT709["bt2020"]))
    light_C = to_bt2020 @ (np.array(colour) * nits)
    codes_HWC = np.broadcast_to(tone.pq_code(np.maximum(light_C, 0)), (16, 16, 3))
    rgb_C = read(hdr_file(tmp_path / "a.mkv", codes_HWC, PQ), (16, 16))[8, 8]
    difference = (hue_of(rgb_C) - 360 * colorsys.rgb_to_hsv(*colour)[0] + 180) % 360 - 180
    assert abs(difference) < 4
    assert colorsys.rgb_to_hsv(*[(value / 255) ** 2.4 for value in rgb_C])[1] > 0.75


def test_a_colour_outside_the_gamut_is_drawn_in_not_clipped():
    green_HWC = np.array([[[0, 65535, 0]]], np.uint16)
    rgb_C = tone.to_sdr(green_HWC // 2, "sdr", "bt2020")[0, 0]
    luminance = (rgb_C / 255.0) ** 2.4 @ np.array(tone._LUMINANCE["bt709"])
    assert luminance == pytest.approx(0.678 * 0.5**2.4, abs=0.01)
    assert rgb_C[1] > rgb_C[2] >= rgb_C[0]


@pytest.mark.media
def test_real_clips_of_high_dynamic_range_use_the_whole_range(media_folder):
    for name in ("hlg10-color-test.mp4", "bt2020_10bit.mp4", "dolbyVision-hdr.MOV", "sample_edit_list.mp4"):
        path = str(media_folder / "awkward" / name)
        assert probe(path).is_hdr, name
        image_HWC = read(path, (90, 160))
        low, high = np.percentile(image_HWC, [1, 99])
        assert low < 90, name
        assert high > 240, name
        assert image_HWC.std(axis=(0, 1)).min() > 20, name
