"""Floating-point operations that a step needs, whatever computes them: for MFU (PaLM, arXiv 2204.02311, B).

Two for each multiply-add of a matrix product; attention counts the pairs of tokens that see each other, not
those that a kernel computes and throws away, and recomputation counts nothing. Of a LoRA what goes
through the frozen layers is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import Tokens, WorldTransformer
from worldmodel.self_flow import layers_of, tapped_layers

# B clips, L tokens.

BACKWARD = 2  # times a forward


@dataclass(frozen=True)
class StepFlops:
    """Of one micro-batch."""

    student: float
    teacher: float

    @property
    def total(self) -> float:
        return self.student + self.teacher


def step_flops(cfg: RunConfig, layout: Layout, batch_clips: int) -> StepFlops:
    """Student both ways, and the teacher's forward up to its layer where the objective has one."""
    _, teacher_layer = layers_of(cfg.objective, cfg.model.depth)
    tapped = tapped_layers(cfg.objective, cfg.model.depth)
    with torch.device("meta"):
        student = SelfFlowStudent(WorldTransformer(cfg.model, layout), cfg.objective, cfg.data.targets)
    tokens = empty_tokens(layout, batch_clips)
    levels = torch.empty(batch_clips, layout.num_levels, device="meta")
    level_of = torch.empty(batch_clips, layout.length, dtype=torch.int64, device="meta")
    inputs = (tokens, levels, level_of)
    forward = _products(lambda: student(*inputs, features=tapped))
    attention = 4.0 * batch_clips * seen_pairs(cfg, layout) * cfg.model.width  # scores and values, a block
    teacher = 0.0
    if cfg.objective.has_teacher:
        teacher = _products(lambda: student.transformer(*inputs, stop_after=teacher_layer))
        teacher += attention * teacher_layer
    backward = BACKWARD - 1 if cfg.train.lora else BACKWARD  # frozen weights have no gradients
    student_flops = (1 + backward) * forward + (1 + BACKWARD) * attention * cfg.model.depth
    return StepFlops(student_flops, teacher)


def seen_pairs(cfg: RunConfig, layout: Layout) -> int:
    """Pairs of query and key in one clip."""
    mask = layout.window_mask_LL(window_chunks=cfg.model.window_chunks, sink_chunks=cfg.model.sink_chunks)
    return int(mask.sum())


def empty_tokens(layout: Layout, batch_clips: int) -> Tokens:
    """Inputs on the meta device."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(batch_clips, *shape, dtype=dtype, device="meta")

    chunks = layout.num_chunks
    return Tokens(
        video_BNVC=empty(chunks, layout.video_tokens, layout.video_values),
        audio_BNTC=empty(chunks, layout.audio_tokens, layout.audio_values),
        text_BN=empty(layout.text_bytes, dtype=torch.int64),
        actions_BNA=empty(chunks, layout.chunk_frames * layout.action_dim),
        actions_valid_BN=empty(chunks, dtype=torch.bool),
        valid_BL=empty(layout.length, dtype=torch.bool),
    )


def _products(forward) -> float:
    """Of linear layers alone: products of batches are attention's, and the choice of a noise level's row."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    by_operator = counter.get_flop_counts()["Global"]
    return float(sum(by_operator.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm)))
