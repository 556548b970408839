"""What is wrong with a run, in words, from its rows of metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from worldmodel.layout import LEARNED

# A cosine of 0.96 at step 1,500, flat from there, was seen where nothing was gained.
EARLY_STEPS, HIGH_COSINE, FLAT = 2000, 0.95, 0.005
SPAN = 200  # steps over which a curve is flat
ENOUGH_STEPS, UNLEARNED = 600, 0.97


class RedFlags:
    """Fed with rows in order of their steps; each warning comes once. That nothing is learned can only be
    seen from the first step on, and of a model that begins anew."""

    def __init__(self, *, begins_anew: bool = True) -> None:
        self.sees_the_beginning: bool | None = None if begins_anew else False
        self.cosines = {m: deque[float](maxlen=SPAN) for m in LEARNED}
        self.first = {m: list[float]() for m in LEARNED}
        self.last = {m: deque[float](maxlen=SPAN // 2) for m in LEARNED}
        self.said = set[str]()

    def see(self, row: Mapping[str, float]) -> list[str]:
        """Warnings that this row gives rise to."""
        if "loss" not in row:
            return []
        step = int(row["step"])
        if self.sees_the_beginning is None:
            self.sees_the_beginning = step == 0
        found = {}
        for m in LEARNED:
            if f"loss_{m}" not in row:
                continue
            self._remember(m, row)
            if self._is_trivial(m, step):
                found[f"cosine {m}"] = (
                    f"step {step}: the cosine of {m} to its teacher is {self.cosines[m][-1]:.3f} and flat so "
                    "early: there is little left to follow; try another objective.noise distribution or a "
                    "larger mask ratio"
                )
            if self._is_unlearned(m, step):
                found[f"unlearned {m}"] = (
                    f"step {step}: the loss of {m} is where it began, at {self.last[m][-1]:.3f}: it is not "
                    f"learned; see whether its latents vary, and raise objective.{m}_weight"
                )
        new = [text for key, text in found.items() if key not in self.said]
        self.said |= found.keys()
        return new

    def _remember(self, modality: str, row: Mapping[str, float]) -> None:
        if (cosine := row.get(f"cosine_{modality}")) is not None:
            self.cosines[modality].append(cosine)
        loss = row[f"loss_{modality}"]
        if len(self.first[modality]) < SPAN // 4:
            self.first[modality].append(loss)
        self.last[modality].append(loss)

    def _is_trivial(self, modality: str, step: int) -> bool:
        seen = self.cosines[modality]
        if step >= EARLY_STEPS or len(seen) < SPAN or seen[-1] < HIGH_COSINE:
            return False
        half = SPAN // 2
        earlier, later = list(seen)[:half], list(seen)[half:]
        return abs(sum(later) - sum(earlier)) / half < FLAT and min(seen) > HIGH_COSINE - 0.01

    def _is_unlearned(self, modality: str, step: int) -> bool:
        first, last = self.first[modality], self.last[modality]
        if not self.sees_the_beginning or step < ENOUGH_STEPS or len(last) < last.maxlen:  # pyright: ignore[reportOperatorIssue]
            return False
        return sum(last) / len(last) > UNLEARNED * sum(first) / len(first)
