"""What one step reports. Tensors become numbers once a step, after the all-reduce that carries them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from worldmodel.config import SelfFlowConfig
from worldmodel.draw import Draw
from worldmodel.layout import LEARNED
from worldmodel.self_flow import LEVEL_BINS, LEVEL_SUMS, Losses
from worldmodel.train.gradient_norms import PARTS

BY_LEVEL_MEANS = {
    "loss": ("flow", "count"),
    "cosine": ("cosine", "count"),
    "mask_share": ("masked", "count"),
    "level_gap": ("gap", "count"),
    "teacher_std": ("std", "sampled"),
    "teacher_rank": ("rank", "sampled"),
}
BY_LEVEL = (len(LEARNED), LEVEL_BINS, len(LEVEL_SUMS))


@dataclass
class Signals:
    """The one small all-reduce of a step: sums over ranks of everything that a collective decision needs.

    counts, batches and clips are of the step that begins; losses, tokens and times are of the step before.
    count_*: tokens under loss; batches_*: micro-batches with something to learn, whatever noise makes of it.
    """

    count_film: float = 0.0
    count_still: float = 0.0
    count_audio: float = 0.0
    batches_film: float = 0.0
    batches_still: float = 0.0
    batches_audio: float = 0.0
    batches: float = 0.0
    stop: float = 0.0
    not_finite: float = 0.0
    clips: float = 0.0
    quarantined: float = 0.0
    objective: float = 0.0
    flow_video: float = 0.0
    flow_audio: float = 0.0
    align_video: float = 0.0
    align_audio: float = 0.0
    cosine_video: float = 0.0
    cosine_audio: float = 0.0
    std_video: float = 0.0
    std_audio: float = 0.0
    rank_video: float = 0.0
    rank_audio: float = 0.0
    masked_video: float = 0.0
    masked_audio: float = 0.0
    gap_video: float = 0.0
    gap_audio: float = 0.0
    grad_video: float = 0.0  # squares of gradients, as are the next two
    grad_audio: float = 0.0
    grad_shared: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    wait_s: float = 0.0
    step_s: float = 0.0
    by_level: Tensor = field(default_factory=lambda: torch.zeros(BY_LEVEL, dtype=torch.float64))

    def to_tensor(self, device: torch.device) -> Tensor:
        numbers = [getattr(self, f.name) for f in fields(self) if f.name != "by_level"]
        together = torch.cat([torch.tensor(numbers, dtype=torch.float64), self.by_level.flatten().cpu()])
        return together.to(device)

    @classmethod
    def from_tensor(cls, vector: Tensor) -> Signals:
        numbers, by_level = vector.cpu().split([len(fields(cls)) - 1, math.prod(BY_LEVEL)])
        return cls(*numbers.tolist(), by_level=by_level.view(BY_LEVEL))

    def count(self, draws: Sequence[Draw]) -> None:
        """Of the micro-batches of a step that begins."""
        counts = torch.stack([one.counts() for one in draws]).tolist()  # waits for a GPU, once a step
        for one, tokens in zip(draws, counts, strict=True):
            learned = one.learned_BM.any(0).tolist()
            for kind, number, is_there in zip(_kinds(one.is_still), tokens, learned, strict=True):
                setattr(self, f"count_{kind}", getattr(self, f"count_{kind}") + number)
                setattr(self, f"batches_{kind}", getattr(self, f"batches_{kind}") + is_there)
            self.batches += any(learned)

    def counts(self) -> Tensor:
        """[video, audio] tokens under loss of the step."""
        return torch.tensor([self.count_film + self.count_still, self.count_audio], dtype=torch.float64)

    def divisors(self, *, is_still: bool) -> Tensor:
        """[video, audio]: what sums over tokens of one micro-batch are divided by. Where all micro-batches
        have both, the tokens of the step.

        A kind that one of four micro-batches has counts for a quarter, as it does on the average where a step
        is one micro-batch: else how much it counts would depend on how many make a step.
        """
        kinds = _kinds(is_still)
        tokens = torch.tensor([getattr(self, f"count_{k}") for k in kinds], dtype=torch.float64)
        having = torch.tensor([getattr(self, f"batches_{k}") for k in kinds], dtype=torch.float64)
        return tokens * (self.batches / having.clamp_min(1))

    def add_sums(self, sums: Tensor) -> None:
        """What `loss_sums` found, over all micro-batches of a step."""
        objective, sums_S2, by_level = sums.cpu().split([1, 2 * len(SUMMED), math.prod(BY_LEVEL)])
        self.objective += float(objective)
        self.by_level = self.by_level + by_level.view(BY_LEVEL)
        for part, values in zip(SUMMED, sums_S2.view(-1, 2).tolist(), strict=True):
            for modality, value in zip(LEARNED, values, strict=True):
                setattr(self, f"{part}_{modality}", getattr(self, f"{part}_{modality}") + value)


def _kinds(is_still: bool) -> tuple[str, str]:
    return ("still" if is_still else "film"), "audio"


SUMMED = ("flow", "align", "cosine", "std", "rank", "masked", "gap")


@torch.no_grad()
def loss_sums(losses: Losses, batch: Draw, divisors: Tensor, cfg: SelfFlowConfig) -> Tensor:
    """The objective, SUMMED by modality, then BY_LEVEL, of one micro-batch, on its device: reading waits for
    the GPU, once a step."""
    parts = (losses.flow, losses.align, losses.cosine, losses.target_std, losses.target_rank)
    exact = replace(losses, flow=losses.flow.double(), align=losses.align.double())
    sums_S2 = torch.stack([part.double() for part in (*parts, batch.masked_counts(), batch.level_gaps())])
    objective = exact.objective(divisors, cfg)[None]
    return torch.cat([objective, sums_S2.flatten(), losses.by_level.double().flatten()])


def step_row(
    step: int,
    signals: Signals,
    counts: Tensor,
    *,
    world_size: int,
    peak: float | None = None,
) -> dict[str, float]:
    """One row of metrics.jsonl: what was minimised, and means over the tokens under loss of all ranks. peak:
    FLOP/s of one device."""
    row: dict[str, float] = {"step": step, "loss": signals.objective}
    for modality, count in zip(LEARNED, counts.tolist(), strict=True):
        if not count:
            continue
        row[f"loss_{modality}"] = getattr(signals, f"flow_{modality}") / count
        row[f"align_{modality}"] = getattr(signals, f"align_{modality}") / count
        row[f"cosine_{modality}"] = getattr(signals, f"cosine_{modality}") / count
        row[f"teacher_rank_{modality}"] = getattr(signals, f"rank_{modality}") / count
        row[f"teacher_std_{modality}"] = getattr(signals, f"std_{modality}") / count
        row[f"tokens_{modality}"] = count
        row[f"mask_share_{modality}"] = getattr(signals, f"masked_{modality}") / count
        row[f"level_gap_{modality}"] = getattr(signals, f"gap_{modality}") / count
    row |= _by_level(signals.by_level)
    step_s = signals.step_s / world_size
    row["step_s"] = step_s
    row["tokens_per_s"] = signals.tokens / step_s if step_s else 0.0
    row["flops_per_s"] = signals.flops / step_s if step_s else 0.0
    if peak:
        row["mfu"] = row["flops_per_s"] / (peak * world_size)
    if signals.grad_shared:  # ZeRO-1 and 2 do not tell them apart
        row |= {f"grad_norm_{part}": math.sqrt(getattr(signals, f"grad_{part}")) for part in PARTS}
    row["stall_fraction"] = signals.wait_s / signals.step_s if signals.step_s else 0.0
    return row


def _by_level(sums: Tensor) -> dict[str, float]:
    """Means of each modality between noise levels, such as loss_video_t0.2_0.4."""
    row = {}
    for m, modality in enumerate(LEARNED):
        for bin_, values in enumerate(sums[m].tolist()):
            found: dict[str, float] = dict(zip(LEVEL_SUMS, values, strict=True))
            between = f"{modality}_t{bin_ / LEVEL_BINS:.1f}_{(bin_ + 1) / LEVEL_BINS:.1f}"
            for name, (total, over) in BY_LEVEL_MEANS.items():
                if found[over]:
                    row[f"{name}_{between}"] = found[total] / found[over]
    return row
