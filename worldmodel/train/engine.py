"""What owns the student, its optimizer and the EMA teacher: one interface, and the engine of one process.

All engines keep bf16 weights with an fp32 master when precision is bf16. A *shard* is what one rank holds of
each parameter's fp32 state, flat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.lora import begin_lora, check_base
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import WorldTransformer
from worldmodel.model_folder import model_folder
from worldmodel.train.fp8 import turn_to_fp8
from worldmodel.train.gradient_norms import squares_by_part
from worldmodel.train.optim import build_optimizer
from worldmodel.train.warm_start import warm_start

KINDS = ("weight", "exp_avg", "exp_avg_sq", "ema")
TEACHER_PREFIX = "transformer."


@dataclass(frozen=True)
class ParameterShard:
    """This rank's slice of one parameter: views into live state by kind, without padding."""

    shape: tuple[int, ...]
    start: int
    parts: dict[str, Tensor]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def length(self) -> int:
        return self.parts["weight"].numel()


class Engine(Protocol):
    rank: int
    world_size: int
    device: torch.device
    leads: bool  # of the ranks that share each clip, the one that is counted
    gradient_squares: Tensor  # of the last step, before clipping; see gradient_norms
    is_replicated: bool  # each rank holds all of the state: its shards are whole

    def student(self, *args: Any, **kwargs: Any) -> dict: ...
    def teacher(self, *args: Any, **kwargs: Any) -> dict: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, learning_rate: float) -> Tensor | float: ...
    def update_ema(self, decay: float) -> None: ...
    def publish_average(self) -> None: ...
    def all_reduce(self, vector: Tensor) -> Tensor: ...
    def shards(self) -> dict[str, ParameterShard]: ...
    def loaded(self, step: int) -> None: ...


def build_student(cfg: RunConfig, layout: Layout) -> SelfFlowStudent:
    """The same initial weights on every rank, without touching the global generator; those of train.init
    where they fit, with the adapters of train.lora. ValueError for a model that cannot be begun from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        student = SelfFlowStudent(WorldTransformer(cfg.model, layout), cfg.objective, cfg.data.targets)
    if cfg.train.init:
        folder = model_folder(cfg.train.init)
        fit = warm_start(student.transformer, folder)
        if cfg.train.lora:
            check_base(fit, folder, cfg)
            begin_lora(student.transformer, cfg)
    return student


def trained(module: torch.nn.Module) -> dict[str, Any]:
    """Parameters by name; under a LoRA the others are frozen."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def slice_of_rank(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """[start, end) of a flattened parameter on one rank."""
    part = math.ceil(numel / world_size)
    return min(numel, rank * part), min(numel, (rank + 1) * part)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def prepare_blocks(transformer: WorldTransformer, cfg: RunConfig, device: torch.device) -> None:
    """As train.fp8, train.compile and train.recompute say."""
    transformer.recompute = cfg.train.recompute
    if cfg.train.fp8:
        turn_to_fp8(transformer, device)
    if cfg.train.compile == "always" or (cfg.train.compile == "auto" and device.type == "cuda"):
        transformer.compile_blocks()


class PlainEngine:
    """One process, no DeepSpeed: the reference that ZeroEngine must equal, and what GPU scripts run."""

    is_replicated = False

    def __init__(self, cfg: RunConfig, layout: Layout, *, device: torch.device | None = None) -> None:
        self.rank, self.world_size, self.leads = 0, 1, True
        self.device = pick_device(cfg.train.device) if device is None else device
        dtype = torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32
        student = build_student(cfg, layout).to(self.device)
        self.master = {n: p.detach().float().clone().requires_grad_() for n, p in trained(student).items()}
        self.student = student.to(dtype)
        self.teacher = (
            build_student(cfg, layout).transformer.to(self.device, dtype).requires_grad_(False).eval()
        )
        for transformer in (self.student.transformer, self.teacher):
            prepare_blocks(transformer, cfg, self.device)
        self.ema = {n: p.detach().clone() for n, p in self.master.items() if n.startswith(TEACHER_PREFIX)}
        self.optimizer = build_optimizer(self.master.values(), cfg.optim)
        self.clip_norm, self.has_teacher = cfg.optim.clip_norm, cfg.objective.has_teacher
        self.gradient = {n: torch.zeros_like(p) for n, p in self.master.items()}
        self.has_gradient = False
        self._publish()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one micro-batch in fp32."""
        loss.backward()
        for name, parameter in trained(self.student).items():
            gradient = self.gradient[name]
            if not self.has_gradient:  # of the step before: nothing to add to
                gradient.zero_() if parameter.grad is None else gradient.copy_(parameter.grad)
            elif parameter.grad is not None:
                gradient += parameter.grad
            parameter.grad = None
        self.has_gradient = True

    def step(self, learning_rate: float) -> Tensor:
        for name, master in self.master.items():
            master.grad = self.gradient[name]
        self.gradient_squares = squares_by_part(self.gradient.items())
        norm = torch.nn.utils.clip_grad_norm_(self.master.values(), self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.has_gradient = False
        self._publish_student()
        return norm

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        masters = [self.master[name].detach() for name in self.ema]
        torch._foreach_lerp_(list(self.ema.values()), masters, 1.0 - decay)  # pyright: ignore
        if self.has_teacher:  # without one, the averaged weights run in evaluations only
            self._publish_teacher()

    def publish_average(self) -> None:
        """Puts the average into the weights that run as `teacher`."""
        self._publish_teacher()

    def all_reduce(self, vector: Tensor) -> Tensor:
        return vector

    def shards(self) -> dict[str, ParameterShard]:
        found = {}
        for name, master in self.master.items():
            state = adam_state(self.optimizer, master)
            parts = {
                "weight": master.detach().view(-1),
                **{k: state[k].view(-1) for k in ("exp_avg", "exp_avg_sq")},
            }
            if name in self.ema:
                parts["ema"] = self.ema[name].view(-1)
            found[name] = ParameterShard(tuple(master.shape), 0, parts)
        return found

    def loaded(self, step: int) -> None:
        """Call after the shards were overwritten: refreshes what is derived from them."""
        for state in self.optimizer.state.values():
            state["step"].fill_(step)
        self._publish()

    def _publish(self) -> None:
        self._publish_student()
        self._publish_teacher()

    @torch.no_grad()
    def _publish_student(self) -> None:
        parameters = dict(self.student.named_parameters())
        torch._foreach_copy_([parameters[n] for n in self.master], list(self.master.values()))  # pyright: ignore

    @torch.no_grad()
    def _publish_teacher(self) -> None:
        parameters = dict(self.teacher.named_parameters())
        ours = [parameters[name.removeprefix(TEACHER_PREFIX)] for name in self.ema]
        torch._foreach_copy_(ours, list(self.ema.values()))  # pyright: ignore


def adam_state(optimizer: torch.optim.Optimizer, master: Tensor) -> dict[str, Tensor]:
    """The moments of one parameter; zeros before the first step, so that a checkpoint finds where to go."""
    state = optimizer.state[master]
    if not state:
        state["step"] = torch.tensor(0.0, device=master.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
    return state
