"""Bytes that one micro-batch takes beyond what stays: the real step, run on the meta device and watched.

Storages are counted as operators make and drop them, so what a kernel takes inside is not seen, and neither
is what a compiler fuses away: for compiled blocks the result is an upper bound.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worldmodel.batch import LatentBatch, ModalityLatents
from worldmodel.config import RunConfig, TargetConfig
from worldmodel.draw import draw
from worldmodel.layout import Layout, PerToken, on_device
from worldmodel.model import attention
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.visibility import Visibility, window_structure
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses

# B clips, H heads, L query tokens, J key tokens, d channels of a head.


@dataclass(frozen=True)
class StepMemory:
    """batch: latents, noise and masks. kept: what backward needs, at the end of forward. passing: beyond
    that, what is there for a moment, at the worst one."""

    batch: int
    kept: int
    passing: int


def step_memory(
    cfg: RunConfig, layout: Layout, student: SelfFlowStudent, batch_clips: int, *, on_gpu: bool
) -> StepMemory:
    """Of a micro-batch of batch_clips clips of that layout, which need not be the student's own.

    student: on the meta device, in the precision that it runs in. Its weights and their gradients are not
    counted, except the gradient that is being made."""
    objective = cfg.objective.model_copy(update={"picture_alone": 0.0, "sound_alone": 0.0})
    batch = empty_batch(layout, batch_clips, cfg.data.targets if objective.rep == "repa" else ())
    one = draw(batch, layout, objective, _NoNoise(0, 0, tuple(range(batch_clips))))
    student.transformer.recompute = cfg.train.recompute
    _make_what_is_kept(cfg, layout)
    trained = [p for p in student.parameters() if p.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(_drop_gradient) for parameter in trained]
    with meta_attention(is_fused=on_gpu), LiveBytes() as live:
        losses = self_flow_losses(student, student.transformer, one, objective, cfg.model.depth)
        kept = live.now
        losses.objective(one.counts(), objective).backward()
    for hook in hooks:
        hook.remove()
    student.transformer.recompute = False
    return StepMemory(batch=_bytes_of([batch, one]), kept=kept, passing=live.peak - kept)


def _make_what_is_kept(cfg: RunConfig, layout: Layout) -> None:
    """Positions and masks of a layout are made once, not in each step."""
    device = torch.device("meta")
    for name in get_args(PerToken):
        on_device(layout, name, device)
    window_structure(layout, cfg.model.window_chunks, cfg.model.sink_chunks, device)


def empty_batch(layout: Layout, clips: int, followed: Sequence[TargetConfig] = ()) -> LatentBatch:
    """A micro-batch on the meta device. followed: frozen encoders whose features travel with it."""
    steps, frames = layout.num_chunks * layout.video_steps, layout.num_chunks * layout.chunk_frames
    rows, columns = (n * p for n, p in zip(layout.video_grid, layout.patch, strict=True))

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(clips, *shape, dtype=dtype, device="meta")

    def modality(*shape: int) -> ModalityLatents:
        valid_BT = empty(shape[0], dtype=torch.bool)
        times_T2 = torch.empty(shape[0], 2, device="meta")
        return ModalityLatents(empty(*shape), valid_BT, valid_BT.clone(), times_T2)

    sound_steps = layout.num_chunks * layout.audio_tokens * layout.audio_patch
    targets: dict[str, Tensor] = {}
    for one in followed:
        shape = (steps, *layout.video_grid) if one.modality == "video" else (sound_steps,)
        assert one.width, "read from the encoder before a model is built"
        targets[one.name] = empty(*shape, one.width, dtype=torch.float16)
        targets[f"{one.name}_valid"] = empty(shape[0], dtype=torch.bool)
    return LatentBatch(
        epoch=0,
        batch_id=0,
        sample_ids_B=torch.arange(clips, device="meta"),
        video=modality(steps, rows, columns, layout.video_channels),
        audio=modality(sound_steps, layout.audio_channels),
        text_BN=empty(layout.text_bytes, dtype=torch.int64),
        actions_BFA=empty(frames, layout.action_dim),
        actions_valid_BF=empty(frames, dtype=torch.bool),
        targets=targets,
    )


class _NoNoise(SampleRandom):
    def noise(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.empty(len(self.sample_ids), *shape, device=device)


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operators made inside and that are still referenced, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(t)._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _storage(tensor)._cdata not in given:
                self._made(_storage(tensor))
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = num_bytes
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._dropped, key)

    def _dropped(self, key: int) -> None:
        self.now -= self.known.pop(key)


@contextmanager
def meta_attention(*, is_fused: bool) -> Iterator[None]:
    """The meta device has no attention of its own: fused as on a GPU, or two products as on the CPU. In place
    of the function, because modes of PyTorch do not reach what backward computes again."""

    def attend(q_BHLd: Tensor, k_BHJd: Tensor, v_BHJd: Tensor, visibility: Visibility) -> Tensor:
        fused: Any = _Fused.apply
        kept = (q_BHLd, k_BHJd, v_BHJd)
        return fused(*kept) if is_fused else attention.products(*kept, visibility.bias)

    before, attention.attend = attention.attend, attend
    try:
        yield
    finally:
        attention.attend = before


class _Fused(torch.autograd.Function):
    """Keeps queries, keys, values, output and a sum a row; nothing of size L x J."""

    @staticmethod
    def forward(ctx: Any, q_BHLd: Tensor, k_BHJd: Tensor, v_BHJd: Tensor) -> Tensor:
        out_BHLd = torch.empty_like(q_BHLd)
        sums_BHL = q_BHLd.new_empty(q_BHLd.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q_BHLd, k_BHJd, v_BHJd, out_BHLd, sums_BHL)
        return out_BHLd

    @staticmethod
    def backward(ctx: Any, grad_BHLd: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore
        return tuple(torch.empty_like(kept) for kept in ctx.saved_tensors[:3])


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _bytes_of(things: list[Any]) -> int:
    storages = {_storage(t)._cdata: _storage(t) for thing in things for t in _tensors(thing)}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from _tensors(getattr(thing, field.name))
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _tensors(value)
