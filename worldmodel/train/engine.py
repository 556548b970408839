"""Two engines behind one interface: ZeroEngine (DeepSpeed ZeRO-3, any number of ranks) and PlainEngine (one
process).

Each owns the student, its optimizer and the EMA teacher. Both keep bf16 weights with an fp32 master when
precision is bf16. A *shard* is this rank's flat fp32 slice of each parameter: [rank * part, (rank + 1) *
part), part = ceil(n / ranks).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.lora import begin_lora, check_base
from worldmodel.model.sequence_parallel import share_sequences
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import Block, WorldTransformer
from worldmodel.model_folder import model_folder
from worldmodel.train.ema import ShardEma
from worldmodel.train.gradient_norms import squares_by_part
from worldmodel.train.optim import build_optimizer
from worldmodel.train.warm_start import warm_start
from worldmodel.train.whole import Fixed, Place, WholeStep

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
    """As train.compile and train.recompute say."""
    transformer.recompute = cfg.train.recompute
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


class ZeroEngine:
    """DeepSpeed ZeRO-3 for student and teacher. The process group must exist (TorchTrainer makes it)."""

    is_replicated = False

    def __init__(
        self, cfg: RunConfig, layout: Layout, *, micro_batches: int, device: torch.device | None = None
    ) -> None:
        """micro_batches: how many this rank runs a step. ValueError if the process group is missing."""
        if not dist.is_initialized():
            raise ValueError(
                "ZeroEngine needs torch.distributed to be initialised first; use PlainEngine for one process"
            )
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = pick_device(cfg.train.device) if device is None else device
        deepspeed = import_deepspeed(self.device)
        self.ranks = share_sequences(cfg.train.sequence_parallel)
        self.leads = self.ranks is None or self.ranks.rank == 0
        dtype = torch.bfloat16 if cfg.train.precision == "bf16" else torch.float32

        def placed(module: torch.nn.Module, transformer: WorldTransformer) -> None:
            module.to(self.device, dtype)  # as DeepSpeed would, but not in fp32 on the device before
            prepare_blocks(transformer, cfg, self.device)
            transformer.sequence = self.ranks
            # A block is gathered whole, by one collective: linear layer by linear layer, a small model spends
            # a third of each step waiting.
            deepspeed.utils.set_z3_leaf_modules(module, [Block])

        # One after the other: the student is in shards before the teacher is built whole.
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its whole configuration
            student = build_student(cfg, layout)
            placed(student, student.transformer)
            is_compiled = student.transformer.is_compiled
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=student,
                optimizer=build_optimizer(student.parameters(), cfg.optim),
                config=self._settings(cfg, micro_batches, is_compiled=is_compiled),
                dist_init_required=False,
            )
            teacher = build_student(cfg, layout).transformer.requires_grad_(False).eval()
            placed(teacher, teacher)
            self.teacher_engine, *_ = deepspeed.initialize(
                model=teacher,
                config=deepspeed_settings(cfg, 1, is_compiled=is_compiled),
                dist_init_required=False,
            )
        self.average = ShardEma(self.engine, self.teacher_engine, prefix=TEACHER_PREFIX)
        self.micro_batches, self.has_teacher = micro_batches, cfg.objective.has_teacher
        self.whole = self._keep_whole() if cfg.train.gather == "step" else None
        self.student: torch.nn.Module = self.engine if self.whole is None else self.engine.module
        self._start_from_fp32(build_student(cfg, layout))

    def _settings(self, cfg: RunConfig, micro_batches: int, *, is_compiled: bool) -> dict[str, Any]:
        settings = deepspeed_settings(cfg, micro_batches, is_compiled=is_compiled)
        if cfg.train.offload_optimizer:
            on_gpu = self.device.type == "cuda"
            settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
        return settings

    def _keep_whole(self) -> WholeStep:
        """For models that fit: takes over DeepSpeed's gathers and reductions, leaves it the shards."""
        students = {}
        for name, parameter in trained(self.engine.module).items():
            group, offset, length = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            students[name] = Place(parameter, group, offset, length)
        averaged = {TEACHER_PREFIX + name: p for name, p in self.teacher_engine.module.named_parameters()}
        # Their shards line up with the student's.
        teachers = [replace(students[name], parameter=p) for name, p in averaged.items() if name in students]
        frozen = [
            (p, averaged[name]) for name, p in self.engine.module.named_parameters() if name not in students
        ]
        # What these hooks gather and release stays whole; they also trip over the teacher's two lengths.
        self.teacher_engine.optimizer._remove_module_hooks()
        return WholeStep(
            self.optimizer,
            list(students.values()),
            teachers,
            self.average.shards,
            fixed=Fixed.gathered(frozen),
        )

    @torch.no_grad()
    def _start_from_fp32(self, initial: SelfFlowStudent) -> None:
        """Gives the master and its average the weights as they were drawn.

        DeepSpeed makes its fp32 master from weights that it rounded to bf16 first. On that grid the first
        small steps of a warm-up move hardly any bf16 weight, and the losses of the two engines part.
        """
        whole = {name: parameter.detach().flatten() for name, parameter in initial.named_parameters()}
        for name, shard in self.shards().items():
            for kind in {"weight", "ema"} & shard.parts.keys():
                part = shard.parts[kind]
                part.copy_(whole[name][shard.start : shard.start + part.numel()])
        self.loaded(0)

    def teacher(self, *args: Any, **kwargs: Any) -> dict:
        run = self.teacher_engine if self.whole is None else self.teacher_engine.module
        return run(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """One micro-batch; the last one of a step is followed by `step`."""
        if self.ranks is not None:  # all of them compute the whole loss
            loss = loss / self.ranks.size
        if self.whole is not None:
            loss.backward()
            return
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)  # gradients are averaged over ranks
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()

    def step(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.whole is not None:
            return self.whole.step(self._measure_gradients)
        self._measure_gradients()
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    def _measure_gradients(self) -> None:
        """When all ranks' are added, and before they are clipped: of this rank's slices, without padding."""
        ours, optimizer, named = trained(self.engine.module), self.optimizer, list[tuple[str, Tensor]]()
        place_of = {id(p): (name, math.prod(p.ds_shape)) for name, p in ours.items()}
        for number, group in enumerate(optimizer.fp16_groups):
            offset, masters = 0, optimizer.fp32_partitioned_groups_flat
            for index, parameter in enumerate(group):
                name, numel = place_of[id(parameter)]
                start, end = slice_of_rank(numel, self.rank, self.world_size)
                if optimizer.offload_optimizer:  # they are with the master weights
                    gradient = masters[number].grad.narrow(0, offset, end - start)
                    offset += parameter.ds_tensor.ds_numel
                else:
                    gradient = optimizer.averaged_gradients[number][index][: end - start]
                named.append((name, gradient))
        self.gradient_squares = squares_by_part(named)

    def update_ema(self, decay: float) -> None:
        self.average.update(decay)
        if self.has_teacher:  # without one, the averaged weights run in evaluations only
            self.publish_average()

    def publish_average(self) -> None:
        """Puts the average into the weights that run as `teacher`. On all ranks at once."""
        self.average.publish()
        if self.whole is not None:
            self.whole.teacher.refresh()

    def all_reduce(self, vector: Tensor) -> Tensor:
        dist.all_reduce(vector)
        return vector

    def shards(self) -> dict[str, ParameterShard]:
        found = {}
        for name, parameter in trained(self.engine.module).items():
            group, offset, _ = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            shape = tuple(parameter.ds_shape)
            start, end = slice_of_rank(math.prod(shape), self.rank, self.world_size)
            master = self.optimizer.fp32_partitioned_groups_flat[group]
            state = adam_state(self.optimizer.optimizer, master)
            flats = {"weight": master, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
            if name.startswith(TEACHER_PREFIX):
                flats["ema"] = self.average.average[group]
            # The padding of the last ranks is uninitialised memory: it is cut off here.
            parts = {kind: flat.detach().narrow(0, offset, end - start) for kind, flat in flats.items()}
            found[name] = ParameterShard(shape, start, parts)
        return found

    def loaded(self, step: int) -> None:
        optimizer = self.optimizer
        for group, master in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.optimizer.state[master]["step"].fill_(step)
            if optimizer.fp16_partitioned_groups_flat[group] is not master:
                optimizer.fp16_partitioned_groups_flat[group].data.copy_(master.data)
            optimizer._unflatten_partitioned_parameters(group)
        self.average.publish()
        if self.whole is not None:
            self.whole.refresh()


def adam_state(optimizer: torch.optim.Optimizer, master: Tensor) -> dict[str, Tensor]:
    """The moments of one parameter; zeros before the first step, so that a checkpoint finds where to go."""
    state = optimizer.state[master]
    if not state:
        state["step"] = torch.tensor(0.0, device=master.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
    return state


def deepspeed_settings(cfg: RunConfig, micro_batches: int, *, is_compiled: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": cfg.data.batch_clips,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": cfg.optim.clip_norm,
        "bf16": {"enabled": cfg.train.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        # Its own optimizer for the host is compiled at start; torch's fused one is there.
        "zero_force_ds_cpu_optimizer": False,
        # Sums over ranks and micro-batches in bf16 would cost parity with one process more than they save.
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": cfg.train.zero_stage,
            # Persistent full copies would go stale in the teacher, whose shards change behind DeepSpeed's
            # back.
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
            "overlap_comm": False,
            "contiguous_gradients": True,
            # Its own linear layer lets go of a gathered weight between forward and backward. Weights that
            # stay whole need none of that, and spare its calls.
            "memory_efficient_linear": cfg.train.gather == "block" and not is_compiled,
            "reduce_bucket_size": 5_000_000,
        },
    }


def import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed quietly. On CPU it would compile a shared-memory operator at start; gloo does not
    need it."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", module="deepspeed")
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # Names of ranges for a profiler of GPUs, made at some thousand calls a step.
        deepspeed.utils.nvtx.enable_nvtx = False
        # By name in sys.modules: as an attribute, deepspeed.comm.torch is the torch package.
        vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None
    return deepspeed
