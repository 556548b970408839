"""How far the mouth is open, and how wide, while phonemes are said. Pure numpy.

Shapes follow the usual viseme classes (lips closed for b m p, on the teeth for f v, rounded for o u w); what
is said before and after blends in over some 50 ms, as lips do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldmodel.worlds.speech import SpeechEvent

# T frames, S samples of a fine grid, 2 = opening and width, each 0 to 1.

REST = (0.0, 0.5)
GRID_HZ = 500
BLEND_S = 0.07  # of a Hann window: half of it is 35 ms
_OTHER_VOWEL, _OTHER_CONSONANT = (0.5, 0.5), (0.2, 0.55)
_VOWELS = "aAeEiIoOuUV@3"
# espeak-ng's mnemonics without stress: opening and width (0 is rounded, 1 is spread).
_SHAPES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("b", "m", "p"), (0.0, 0.5)),
    **dict.fromkeys(("f", "v"), (0.08, 0.6)),
    **dict.fromkeys(("w",), (0.12, 0.0)),
    **dict.fromkeys(("r", "r-", "S", "Z", "tS", "dZ"), (0.22, 0.2)),
    **dict.fromkeys(("h", "k", "g", "N", "j"), (0.3, 0.55)),
    **dict.fromkeys(("a", "aa", "a2"), (0.9, 0.65)),
    **dict.fromkeys(("A", "A:", "A@", "0", "O2"), (0.95, 0.45)),
    **dict.fromkeys(("aI",), (0.8, 0.7)),
    **dict.fromkeys(("aU",), (0.8, 0.35)),
    **dict.fromkeys(("V",), (0.7, 0.5)),
    **dict.fromkeys(("E", "e", "e@"), (0.6, 0.75)),
    **dict.fromkeys(("eI",), (0.5, 0.85)),
    **dict.fromkeys(("i", "i:", "i@"), (0.3, 1.0)),
    **dict.fromkeys(("I", "I2"), (0.35, 0.8)),
    **dict.fromkeys(("O", "O:", "o@", "OI"), (0.6, 0.15)),
    **dict.fromkeys(("oU",), (0.5, 0.1)),
    **dict.fromkeys(("u", "u:", "U", "U@"), (0.3, 0.0)),
    **dict.fromkeys(("@", "@2", "@L", "a#", "3", "3:"), (0.4, 0.45)),
}


def mouth_shape(phoneme: str) -> tuple[float, float]:
    """Opening and width while a phoneme (espeak-ng's mnemonic) is held; silence is the mouth at rest."""
    name = phoneme.strip("',%=|;")
    if not name or name.startswith("_"):
        return REST
    return _SHAPES.get(name, _OTHER_VOWEL if name[0] in _VOWELS else _OTHER_CONSONANT)


def mouth_track(phonemes: Sequence[SpeechEvent], times_s: np.ndarray) -> np.ndarray:
    """[T, 2] at these times, of phonemes on the same clock; at rest before and after them."""
    margin = BLEND_S
    last_s = max([float(times_s.max()), *(phoneme.end_s for phoneme in phonemes)]) + margin
    grid_S = np.arange(round((last_s + margin) * GRID_HZ) + 1) / GRID_HZ - margin
    target_S2 = np.tile(np.array(REST), (len(grid_S), 1))
    for phoneme in phonemes:
        target_S2[(grid_S >= phoneme.start_s) & (grid_S < phoneme.end_s)] = mouth_shape(phoneme.name)
    window = np.hanning(round(BLEND_S * GRID_HZ) | 1)
    window /= window.sum()
    reach = len(window) // 2
    padded_S2 = np.pad(target_S2, ((reach, reach), (0, 0)), mode="edge")
    smooth_S2 = np.stack([np.convolve(padded_S2[:, k], window, mode="valid") for k in range(2)], axis=1)
    return np.stack([np.interp(times_s, grid_S, smooth_S2[:, k]) for k in range(2)], axis=1)
