"""One pass over a source: its samples in micro-batches of one bucket, shuffled from (seed, source, pass)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PADDING = -1


@dataclass(frozen=True)
class Pass:
    """Micro-batches of one pass over a source: the b-th holds ids[starts[b] : starts[b + 1]], -1 is
    padding."""

    ids: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batch(self, number: int) -> np.ndarray:
        return self.ids[self.starts[number] : self.starts[number + 1]]


def shuffled_pass(
    ids_by_bucket: Mapping[int, np.ndarray], sizes: Sequence[int], *, seed: int, source: int, epoch: int
) -> Pass:
    """sizes: clips of a micro-batch, by bucket. Samples are shuffled within buckets, then micro-batches."""
    key, counter = np.array([seed, epoch], dtype=np.uint64), np.array([0, 0, 0, source], dtype=np.uint64)
    random = np.random.Philox(key=key, counter=counter)
    ids, starts, start = [], [], 0
    for bucket, own in ids_by_bucket.items():
        padded = np.full(-(-len(own) // sizes[bucket]) * sizes[bucket], PADDING, dtype=np.int64)
        padded[: len(own)] = own[_order(random, len(own))]
        ids.append(padded)
        starts.append(np.arange(start, start + len(padded), sizes[bucket]))
        start += len(padded)
    flat, first = np.concatenate(ids), np.concatenate(starts)
    if len(ids) == 1:
        return Pass(flat, np.append(first, start))
    order = _order(random, len(first))
    lengths = np.diff(np.append(first, start))[order]
    ends = np.cumsum(lengths)
    within = np.arange(start) - np.repeat(ends - lengths, lengths)
    return Pass(flat[np.repeat(first[order], lengths) + within], np.append(0, ends))


def _order(random: np.random.Philox, count: int) -> np.ndarray:
    """A permutation from raw bits: numpy keeps them, unlike Generator.permutation, over versions."""
    return np.argsort(random.random_raw(count), kind="stable")
