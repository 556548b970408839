"""What a config's model costs, from shapes alone: parameters and FLOPs of a step; memory is worker_memory's.

The model is built on the meta device, so ten billion parameters take seconds and no memory.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ray_jobs.buckets import buckets_of
from worldmodel.config import RunConfig
from worldmodel.flops import empty_tokens
from worldmodel.layout import Layout
from worldmodel.lora import begin_lora
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import Tokens, WorldTransformer
from worldmodel.self_flow import layers_of, tapped_layers

PARTS = {  # the first fragment that a parameter's name holds decides
    "head.": "projection head",
    "attention": "attention",
    "feed_forward.video": "feed-forward of pictures",
    "feed_forward.audio": "feed-forward of sound",
    "feed_forward": "feed-forward of text and actions",
    "modulation": "noise levels",
    "level": "noise levels",
    "stem": "causal stem",
    "text_in": "text",
    "": "inputs and outputs",
}


def build_on_meta(cfg: RunConfig, layout: Layout, *, is_adapted: bool = True) -> SelfFlowStudent:
    """The student in the precision that it runs in; is_adapted: with what train.lora adds and freezes."""
    with torch.device("meta"):
        student = SelfFlowStudent(WorldTransformer(cfg.model, layout), cfg.objective, cfg.data.targets)
        if cfg.train.lora and is_adapted:
            begin_lora(student.transformer, cfg)
    return student.to(torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32)


def parameters_by_part(student: SelfFlowStudent) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, parameter in student.named_parameters():
        counts[next(part for fragment, part in PARTS.items() if fragment in name)] += parameter.numel()
    return dict(counts.most_common())


def flops_per_step(cfg: RunConfig, layout: Layout, student: SelfFlowStudent) -> float:
    """Matrix products of one global step of all workers: student both ways, and the teacher's forward. Of
    micro-batches of data.clip_s and data.size."""
    with FlopCounterMode(display=False) as counter:
        out = _forward(cfg, layout, student)
        torch.stack([values.sum() for values in out.values() if isinstance(values, Tensor)]).sum().backward()
        if cfg.objective.has_teacher:
            _, layer = layers_of(cfg.objective, cfg.model.depth)
            with torch.no_grad():
                student.transformer(*_inputs(cfg, layout), features=(layer,), stop_after=layer)
    return float(counter.get_total_flops()) * cfg.train.micro_batches


def _forward(cfg: RunConfig, layout: Layout, student: SelfFlowStudent) -> dict[str, Tensor]:
    return student(*_inputs(cfg, layout), features=tapped_layers(cfg.objective, cfg.model.depth))


def _inputs(cfg: RunConfig, layout: Layout) -> tuple[Tokens, Tensor, Tensor]:
    """One micro-batch of empty clips: tokens, levels and the level of each token."""
    batch = buckets_of(cfg)[0].batch_clips
    levels = torch.empty(batch, layout.num_levels, device="meta")
    level_of = torch.empty(batch, layout.length, dtype=torch.int64, device="meta")
    return empty_tokens(layout, batch), levels, level_of
