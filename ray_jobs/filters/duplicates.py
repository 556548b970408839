"""Near-duplicates: the same picture with the same sound, encoded anew, scaled, or in another container.

Clips that agree in a quarter of one perceptual hash fall into one bucket; only those are compared, and no
more than MOST_COMPARED of a bucket, so that work grows with the number of clips and not with its square.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ray_jobs.filters.look import Look

# P places in time, S steps of sound, B bands.

PLACES = 5  # of a clip at which pictures are compared
PARTS = 4  # of a hash; each of 16 bits is a bucket
MOST_COMPARED = 64
MOST_BITS = 10.0  # of 64, that pictures of one clip differ in on average
MOST_BITS_ONCE = 18  # and at any one place
MOST_DB = 4.0  # that sounds of one clip differ in on average, loudness aside
LONE_DB, LONE_STEPS = 2.5, 4  # sound alone must agree more, and last longer than a knock on a door
LEAST_DB = -55.0  # bands below are silence of one encoder or another
LENGTH_SLACK_S, LENGTH_SLACK = 0.25, 0.03


@dataclass(frozen=True)
class Print:
    """What a clip looks and sounds like. sound_SB None: it has no sound. has_picture False: sound alone."""

    seconds: float
    hash_P: np.ndarray
    light_P: np.ndarray  # mean luma: flat pictures have no hash
    sound_SB: np.ndarray | None

    @property
    def has_picture(self) -> bool:
        return len(self.hash_P) > 0


def print_of(look: Look) -> Print:
    empty = Print(look.end_s - look.start_s, np.zeros(0, np.uint64), np.zeros(0), look.sound_SB)
    if not len(look.hash_T):
        return empty
    # where a place falls between two samples, it takes the one before, as a player would
    span_s = max(look.end_s - look.start_s, 1e-3)
    at_P = look.start_s + span_s * (np.arange(PLACES) + 0.5) / PLACES
    index_P = np.clip(np.searchsorted(look.time_T, at_P + 1e-3, side="right") - 1, 0, len(look.hash_T) - 1)
    light_P = look.blocks_TRK[index_P].astype(np.float32).mean((1, 2))
    return Print(empty.seconds, look.hash_T[index_P], light_P, look.sound_SB)


def same_clip(one: Print, other: Print) -> bool:
    longer_s = max(one.seconds, other.seconds)
    if abs(one.seconds - other.seconds) > max(LENGTH_SLACK_S, LENGTH_SLACK * longer_s):
        return False
    if not one.has_picture and not other.has_picture:
        is_long = all(p.sound_SB is not None and len(p.sound_SB) >= LONE_STEPS for p in (one, other))
        return is_long and same_sound(one.sound_SB, other.sound_SB, most_db=LONE_DB)
    return same_picture(one, other) and same_sound(one.sound_SB, other.sound_SB)


def same_picture(one: Print, other: Print) -> bool:
    if one.has_picture != other.has_picture:
        return False
    bits_P = np.array([int(a ^ b).bit_count() for a, b in zip(one.hash_P, other.hash_P, strict=True)])
    is_flat_P = (one.hash_P == 0) & (other.hash_P == 0)
    if (np.abs(one.light_P - other.light_P)[is_flat_P] > 8).any():
        return False
    return bits_P.mean() <= MOST_BITS and bits_P.max() <= MOST_BITS_ONCE


def same_sound(one_SB: np.ndarray | None, other_SB: np.ndarray | None, *, most_db: float = MOST_DB) -> bool:
    """Levels of bands step by step, after one common change of loudness."""
    silent = [
        sound is None or not len(sound) or float(sound.max()) < LEAST_DB for sound in (one_SB, other_SB)
    ]
    if any(silent):
        return all(silent)
    assert one_SB is not None
    assert other_SB is not None
    steps = min(len(one_SB), len(other_SB))
    one_SB, other_SB = (s[:steps].astype(np.float32) for s in (one_SB, other_SB))
    heard_SB = np.maximum(one_SB, other_SB) > LEAST_DB
    gain_db = float(np.median((one_SB - other_SB)[heard_SB])) if heard_SB.any() else 0.0
    one_SB, other_SB = np.maximum(one_SB, LEAST_DB), np.maximum(other_SB + gain_db, LEAST_DB)
    return float(np.abs(one_SB - other_SB)[heard_SB].mean()) <= most_db if heard_SB.any() else True


def first_of_each(prints: Sequence[Print]) -> list[int]:
    """For each clip the number of the first that it duplicates: its own where it is the first."""
    first = list(range(len(prints)))

    def root(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]
            i = first[i]
        return i

    buckets: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, one in enumerate(prints):
        compared: set[int] = set()
        for key in _keys(one):
            bucket = buckets[key]
            for j in bucket[:MOST_COMPARED]:
                if j not in compared and root(i) != root(j) and same_clip(one, prints[j]):
                    low, high = sorted((root(i), root(j)))
                    first[high] = low
                compared.add(j)
            if len(bucket) < MOST_COMPARED:
                bucket.append(i)
    return [root(i) for i in range(len(prints))]


def _keys(one: Print) -> Iterator[tuple[object, ...]]:
    """Buckets that a clip falls into."""
    if one.has_picture and one.hash_P.any():
        for place, value in enumerate(one.hash_P):
            for part in range(PARTS) if value else ():
                yield place, part, int(value) >> (16 * part) & 0xFFFF
        return
    length = round(one.seconds / LENGTH_SLACK_S)
    shades = tuple(np.round(one.light_P / 16).astype(int).tolist())  # flat pictures, or none
    for near in (length - 1, length, length + 1):
        for shape in _shapes(one.sound_SB):
            yield near, shades, shape


def _shapes(sound_SB: np.ndarray | None) -> Iterator[tuple[object, ...]]:
    """Which of two neighbouring bands is louder, in each half of the sound."""
    if sound_SB is None or len(sound_SB) < 2:
        yield ("silence",)
        return
    for half, part_SB in enumerate(np.array_split(sound_SB.astype(np.float32), 2)):
        mean_B = np.maximum(part_SB, LEAST_DB).mean(0)
        yield half, *(np.diff(mean_B) > 0).tolist()
