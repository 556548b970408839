"""What a config's model costs, from shapes alone: parameters, bytes of a worker, FLOPs of a step.

The model is built on the meta device, so ten billion parameters take seconds and no memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ray_jobs.buckets import buckets_of
from worldmodel.config import RunConfig
from worldmodel.flops import empty_tokens
from worldmodel.layout import Layout
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import Tokens, WorldTransformer
from worldmodel.self_flow import layers_of, tapped_layers

# B clips, L tokens, H heads, W ranks.

FP32 = 4
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


@dataclass(frozen=True)
class Sizes:
    """Bytes of one training worker, and of one checkpoint of all workers together."""

    weights: int
    optimizer: int  # fp32 master and both moments
    gradients: int
    teacher: int  # fp32 average and the weights that run
    gathered: int  # whole weights and gradients beyond this worker's shard
    activations: int  # an estimate: what backward keeps of one micro-batch
    checkpoint: int

    @property
    def worker(self) -> int:
        parts = (self.weights, self.optimizer, self.gradients, self.teacher, self.gathered, self.activations)
        return sum(parts)


def build_on_meta(cfg: RunConfig, layout: Layout) -> SelfFlowStudent:
    """The student in the precision that it runs in."""
    with torch.device("meta"):
        student = SelfFlowStudent(WorldTransformer(cfg.model, layout), cfg.objective, cfg.data.targets)
    return student.to(torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32)


def parameters_by_part(student: SelfFlowStudent) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, parameter in student.named_parameters():
        counts[next(part for fragment, part in PARTS.items() if fragment in name)] += parameter.numel()
    return dict(counts.most_common())


def sizes(cfg: RunConfig, layout: Layout, student: SelfFlowStudent) -> Sizes:
    """Of ZeRO-3 as `worldmodel.train.engine` sets it up; libraries, CUDA's context and buffers left out."""
    width = _value_bytes(student)
    whole = sum(p.numel() for p in student.parameters())
    averaged = sum(p.numel() for p in student.transformer.parameters())
    shard = sum(_shards(student, cfg.train.workers))
    average_shard = sum(_shards(student.transformer, cfg.train.workers))
    return Sizes(
        weights=shard * width,
        optimizer=shard * 3 * FP32,
        gradients=shard * FP32,
        teacher=average_shard * (FP32 + width),
        gathered=_gathered(cfg, student, whole, averaged),
        activations=saved_activations(cfg, layout, student),
        checkpoint=whole * 3 * FP32 + averaged * FP32,
    )


def saved_activations(cfg: RunConfig, layout: Layout, student: SelfFlowStudent) -> int:
    """Bytes that backward keeps of one micro-batch, without checkpointing: those that autograd saves.

    The meta device has no fused attention, so what attention keeps is put in by hand: queries, keys, values
    and output where it is fused (CUDA), and without the output but with all weights on the CPU.
    """
    batch, width = buckets_of(cfg)[0].batch_clips, _value_bytes(student)
    heads = cfg.model.width // cfg.model.head_dim
    own = {p.untyped_storage()._cdata for p in student.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        in_attention = tensor.shape == (batch, heads, layout.length, layout.length) or (
            tensor.dim() == 3 and tensor.shape[0] == batch * heads
        )
        storage = tensor.untyped_storage()
        if not in_attention and storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _forward(cfg, layout, student)
    tokens = batch * layout.length
    if cfg.train.device == "cpu":
        attention = 3 * tokens * cfg.model.width + tokens * heads * layout.length
    else:
        attention = 4 * tokens * cfg.model.width
    return sum(storage.nbytes() for storage in kept.values()) + cfg.model.depth * attention * width


def flops_per_step(cfg: RunConfig, layout: Layout, student: SelfFlowStudent) -> float:
    """Matrix products of one global step of all workers: student both ways, and the teacher's forward."""
    with FlopCounterMode(display=False) as counter:
        out = _forward(cfg, layout, student)
        torch.stack([values.sum() for values in out.values() if isinstance(values, Tensor)]).sum().backward()
        if cfg.objective.has_teacher:
            _, layer = layers_of(cfg.objective, cfg.model.depth)
            with torch.no_grad():
                student.transformer(*_inputs(cfg, layout), features=(layer,), stop_after=layer)
    return float(counter.get_total_flops()) * cfg.train.micro_batches


def over_flow_matching(cfg: RunConfig, layout: Layout, flops: float) -> float:
    """What a step's FLOPs are over those of the same model under plain flow matching."""
    objective = cfg.objective.model_copy(update={"rep": "none"})
    plain = cfg.model_copy(update={"objective": objective})
    return flops / flops_per_step(plain, layout, build_on_meta(plain, layout))


def _forward(cfg: RunConfig, layout: Layout, student: SelfFlowStudent) -> dict[str, Tensor]:
    return student(*_inputs(cfg, layout), features=tapped_layers(cfg.objective, cfg.model.depth))


def _inputs(cfg: RunConfig, layout: Layout) -> tuple[Tokens, Tensor, Tensor]:
    """One micro-batch of empty clips: tokens, levels and the level of each token."""
    batch = buckets_of(cfg)[0].batch_clips
    levels = torch.empty(batch, layout.num_levels, device="meta")
    level_of = torch.empty(batch, layout.length, dtype=torch.int64, device="meta")
    return empty_tokens(layout, batch), levels, level_of


def _value_bytes(student: SelfFlowStudent) -> int:
    """Of a weight or an activation."""
    return next(student.parameters()).element_size()


def _shards(module: torch.nn.Module, workers: int) -> Iterator[int]:
    """Elements of one rank's share of each parameter; the last rank's is padded to the same length."""
    for parameter in module.parameters():
        yield math.ceil(parameter.numel() / workers)


def _gathered(cfg: RunConfig, student: SelfFlowStudent, whole: int, averaged: int) -> int:
    """Whole parameters that are there at once: all of them, or one block's with its gradient."""
    if cfg.train.workers == 1:
        return 0
    width = _value_bytes(student)
    if cfg.train.gather == "step":
        return whole * (width + FP32) + averaged * width
    block = sum(p.numel() for p in student.transformer.blocks[0].parameters())
    return block * 2 * width
