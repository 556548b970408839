"""High dynamic range and wide gamut to what a standard screen shows, on small pictures.

Code values -> light of the master's screen (BT.2100: PQ is absolute, HLG is shown at 1000 cd/m2) -> BT.709
primaries (BT.2087), colours outside drawn towards the grey of their own luminance until they fit -> the tone
curve of BT.2390 section 5.4 from 1000 down to 203 cd/m2, on the largest of R, G and B: their ratios, and so
hue and saturation, stay -> the inverse of BT.1886.

203 cd/m2 is the reference white of BT.2408: a screen's white shows what an HDR screen shows at that level.
The curve leaves light below 88 cd/m2 alone and makes room for highlights above it, so reference white itself
lands at REFERENCE_WHITE of 255, and 1000 cd/m2 at 255.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

# H W pixels, C channels, N pixels outside the gamut.

Transfer = Literal["sdr", "pq", "hlg"]
Gamut = Literal["bt709", "bt2020", "p3"]

PEAK_NITS = 1000.0  # nominal peak of HLG, and of most PQ masters
WHITE_NITS = 203.0
REFERENCE_WHITE = 230  # (159 / 203) ** (1 / 2.4) * 255
_NUM_CODES = 1 << 16
_KNOTS = 512

_TO_BT709 = {
    "bt2020": ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    "p3": ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}
_LUMINANCE = {
    "bt709": (0.2126, 0.7152, 0.0722),
    "bt2020": (0.2627, 0.6780, 0.0593),
    "p3": (0.2290, 0.6917, 0.0793),
}
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128  # BT.2100, table 4
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_HLG_A, _HLG_B, _HLG_C = 0.17883277, 0.28466892, 0.55991073  # BT.2100, table 5
_HLG_GAMMA = 1.2  # of a screen of 1000 cd/m2


def to_sdr(codes_HWC: np.ndarray, transfer: Transfer, gamut: Gamut) -> np.ndarray:
    """uint16 R'G'B' code values, 65535 is 1, to uint8 R'G'B' in BT.709."""
    light_HWC = _light_of_codes(transfer)[codes_HWC]
    if transfer == "hlg":
        scene_HW = light_HWC @ np.array(_LUMINANCE[gamut], np.float32)
        light_HWC *= (scene_HW ** (_HLG_GAMMA - 1) * np.float32(PEAK_NITS / WHITE_NITS))[..., None]
    if gamut != "bt709":
        light_HWC = light_HWC @ np.array(_TO_BT709[gamut], np.float32).T
        _fit(light_HWC)
    if transfer != "sdr":
        light_HWC *= np.interp(light_HWC.max(axis=-1), *_curve()).astype(np.float32)[..., None]
    root_HWC = np.sqrt(np.clip(light_HWC, 0, 1))
    return _codes_of_light()[(root_HWC * (_NUM_CODES - 1) + 0.5).astype(np.uint16)]


def _fit(light_HWC: np.ndarray) -> None:
    """Negative light is outside the gamut: mix in the grey of the same luminance until there is none."""
    low_HW = light_HWC.min(axis=-1)
    outside_HW = low_HW < 0
    outside_NC, low_N1 = light_HWC[outside_HW], low_HW[outside_HW][:, None]
    grey_N1 = np.maximum(outside_NC @ np.array(_LUMINANCE["bt709"], np.float32), 0)[:, None]
    light_HWC[outside_HW] = grey_N1 + (outside_NC - grey_N1) * (grey_N1 / (grey_N1 - low_N1))


@lru_cache(maxsize=3)
def _light_of_codes(transfer: Transfer) -> np.ndarray:
    """Light of each code: 1 is white for sdr and WHITE_NITS for pq; of the scene, up to 1, for hlg."""
    code = np.arange(_NUM_CODES) / (_NUM_CODES - 1)
    if transfer == "pq":
        light = pq_nits(code) / WHITE_NITS
    elif transfer == "hlg":
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - _HLG_C) / _HLG_A) + _HLG_B) / 12)
    else:
        light = code**2.4
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _codes_of_light() -> np.ndarray:
    """uint8 code of each square root of light: fine steps where the dark is."""
    root = np.arange(_NUM_CODES) / (_NUM_CODES - 1)
    return np.round(255 * root ** (2 / 2.4)).astype(np.uint8)


@lru_cache(maxsize=1)
def _curve() -> tuple[np.ndarray, np.ndarray]:
    """Light in WHITE_NITS, and what the tone curve multiplies it by: 1 to the knee, white from the peak."""
    beyond = np.geomspace(PEAK_NITS, 10000, 64)[1:]
    nits = np.concatenate([np.geomspace(1, PEAK_NITS, _KNOTS), beyond])
    shown = tone_nits(np.minimum(nits, PEAK_NITS))
    return nits / WHITE_NITS, shown / nits


def tone_nits(nits: np.ndarray) -> np.ndarray:
    """What is shown of light up to the peak: BT.2390 section 5.4, black at 0 on both screens."""
    top = pq_code(np.array(PEAK_NITS))
    most = float(pq_code(np.array(WHITE_NITS)) / top)
    knee = 1.5 * most - 0.5
    code = pq_code(nits) / top
    t = np.clip((code - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    )
    return pq_nits(np.where(code < knee, code, spline) * top)


def pq_nits(code: np.ndarray) -> np.ndarray:
    """cd/m2 of a PQ code in [0, 1] (BT.2100, table 4)."""
    power = code ** (1 / _M2)
    return 10000 * (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def pq_code(nits: np.ndarray) -> np.ndarray:
    power = (nits / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
