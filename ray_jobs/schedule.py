"""Which source gives each micro-batch of the stream, in all phases of training.

Every source is an endless sequence of its own micro-batches. A phase interleaves them evenly by their shares:
the j-th micro-batch of a source with share p stands at time (j + 1/2) / p of the phase. So position n means
the same whenever it is asked for, and a mixture keeps its proportions over any stretch of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from worldmodel.config import RunConfig

# K sources, N micro-batches.

FIRST_HORIZON = 1 << 12


@dataclass(frozen=True)
class Phase:
    """num_batches None: to the end. shares: of each source, adding up to 1."""

    name: str
    num_batches: int | None
    shares: tuple[float, ...]

    def sources_N(self, num_batches: int) -> np.ndarray:
        """Source of each of the first micro-batches of the phase, int16 [N]."""
        times, sources = [], []
        for source, share in enumerate(self.shares):
            if share > 0:  # enough of each: counts never stray by more than one a source
                count = int(np.ceil(share * (num_batches + len(self.shares)))) + 2
                times.append((np.arange(count) + 0.5) / share)
                sources.append(np.full(count, source, dtype=np.int16))
        order = np.lexsort((np.concatenate(sources), np.concatenate(times)))
        return np.concatenate(sources)[order][:num_batches]


@dataclass
class Schedule:
    """Phases in order; the last has no end."""

    phases: tuple[Phase, ...]
    _source_N: np.ndarray = field(init=False)
    _index_N: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._extend(FIRST_HORIZON)

    @property
    def num_sources(self) -> int:
        return len(self.phases[0].shares)

    def at(self, position: int) -> tuple[int, int]:
        """(source, number of this micro-batch among those of its source)."""
        if position >= len(self._source_N):
            self._extend(2 * position)
        return int(self._source_N[position]), int(self._index_N[position])

    def counts(self, position: int) -> list[int]:
        """Micro-batches of each source before the position."""
        if position > len(self._source_N):
            self._extend(2 * position)
        return np.bincount(self._source_N[:position], minlength=self.num_sources).tolist()

    def phase_at(self, position: int) -> str:
        end = 0
        for phase in self.phases:
            end += phase.num_batches or 0
            if phase.num_batches is None or position < end:
                return phase.name
        return self.phases[-1].name

    def _extend(self, horizon: int) -> None:
        parts, left = [], horizon
        for phase in self.phases:
            count = left if phase.num_batches is None else min(left, phase.num_batches)
            parts.append(phase.sources_N(count))
            left -= count
        self._source_N = np.concatenate(parts)
        self._index_N = np.zeros(len(self._source_N), dtype=np.int64)
        for source in range(self.num_sources):
            own = self._source_N == source
            self._index_N[own] = np.arange(own.sum())


def schedule_of(cfg: RunConfig) -> Schedule:
    """The phases of a run; one phase with the weights of the mixture where none is given."""
    sources = cfg.data.sources
    if not cfg.data.phases:
        return Schedule((Phase("training", None, _shares([source.weight for source in sources] or [1.0])),))
    own = {source.name: source.weight for source in sources} or {"clips": 1.0}
    phases = []
    for phase in cfg.data.phases:
        weights = phase.weights or own
        num_batches = None if phase.steps is None else phase.steps * cfg.train.micro_batches
        phases.append(Phase(phase.name, num_batches, _shares([weights.get(name, 0.0) for name in own])))
    return Schedule(tuple(phases))


def _shares(weights: list[float]) -> tuple[float, ...]:
    return tuple(weight / sum(weights) for weight in weights)
