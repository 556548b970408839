"""Floating-point operations that a step needs, whatever computes them: for MFU (PaLM, arXiv 2204.02311, B).

Two for each multiply-add of a matrix product; attention counts the pairs of tokens that see each other, not
those that a kernel computes and throws away, and recomputation counts nothing. Layers that read data have no
gradient of their input. Of a LoRA what goes through the frozen layers is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import Tokens, WorldTransformer
from worldmodel.self_flow import layers_of, tapped_layers

# B clips, L tokens.

ATTENTION_BACKWARD = 2  # times a forward


@dataclass(frozen=True)
class StepFlops:
    """Of one micro-batch."""

    student: float
    teacher: float

    @property
    def total(self) -> float:
        return self.student + self.teacher


def step_flops(cfg: RunConfig, layout: Layout, batch_clips: int) -> StepFlops:
    """Student both ways, and the teacher's forward up to its layer where the objective has one. Counting
    takes half a second, once a process."""
    same = (part.model_dump_json() for part in (cfg.model, cfg.objective, *cfg.data.targets))
    key = (*same, bool(cfg.train.lora), layout, batch_clips)
    if key not in _COUNTED:
        _COUNTED[key] = _count(cfg, layout, batch_clips)
    return _COUNTED[key]


_COUNTED: dict[tuple[Any, ...], StepFlops] = {}


def _count(cfg: RunConfig, layout: Layout, batch_clips: int) -> StepFlops:
    _, teacher_layer = layers_of(cfg.objective, cfg.model.depth)
    tapped = tapped_layers(cfg.objective, cfg.model.depth)
    with torch.device("meta"):
        student = SelfFlowStudent(WorldTransformer(cfg.model, layout), cfg.objective, cfg.data.targets)
    tokens = empty_tokens(layout, batch_clips)
    levels = torch.empty(batch_clips, layout.num_levels, device="meta")
    level_of = torch.empty(batch_clips, layout.length, dtype=torch.int64, device="meta")
    inputs = (tokens, levels, level_of)

    def forward() -> dict[str, Any]:
        return student(*inputs, features=tapped)

    attention = 4.0 * batch_clips * seen_pairs(cfg, layout) * cfg.model.width  # scores and values, a block
    teacher = 0.0
    if cfg.objective.has_teacher:
        teacher = _without_gradients(lambda: student.transformer(*inputs, stop_after=teacher_layer))
        teacher += attention * teacher_layer
    if cfg.train.lora:  # frozen weights have no gradients: back as forth
        products = 2 * _without_gradients(forward)
    else:
        products = _products(lambda: torch.stack(list(_leaves(forward()))).sum().backward())
    return StepFlops(products + (1 + ATTENTION_BACKWARD) * attention * cfg.model.depth, teacher)


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


def _leaves(out: Any) -> Iterator[Tensor]:
    """The sum of each tensor in nested lists and dictionaries."""
    if isinstance(out, Tensor):
        yield out.sum()
        return
    for part in out.values() if isinstance(out, dict) else out:
        yield from _leaves(part)


def _without_gradients(forward: Callable[[], Any]) -> float:
    with torch.no_grad():
        return _products(forward)


def _products(step: Callable[[], Any]) -> float:
    """Of linear layers alone: products of batches are attention's, and the choice of a noise level's row."""
    with FlopCounterMode(display=False) as counter:
        step()
    by_operator = counter.get_flop_counts()["Global"]
    return float(sum(by_operator.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm)))
