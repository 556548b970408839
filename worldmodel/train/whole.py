"""Whole parameters and gradients within a step: two collectives a step instead of some a module and
micro-batch, for models that fit.

DeepSpeed's own persistent parameters (stage3_param_persistence_threshold) are gathered one by one after each
step: 170 collectives for a model of six blocks, on CPUs slower than gathering block by block. The shards of
all parameters of a group lie in one flat buffer, so one collective brings them all, and one scatters their
gradients. What ZeRO-3 shards besides stays sharded: master weights, moments, average.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from worldmodel.train.exchange import Exchange

# W ranks, S elements of one rank's flat buffer.


@dataclass(frozen=True)
class Place:
    """Where the shard of one ZeRO-3 parameter lies: `length` elements of flat buffer `group`."""

    parameter: Any
    group: int
    offset: int
    length: int


@dataclass(frozen=True)
class Fixed:
    """Frozen parameters of one module, whole for good: [n] each, shared with the other module."""

    parameters: Sequence[Any]
    wholes: Sequence[Tensor]

    @classmethod
    def gathered(cls, pairs: Sequence[tuple[Any, Any]]) -> tuple[Fixed, Fixed]:
        """Of student and teacher, whose frozen parameters are the same. On all ranks at once."""
        students, teachers = [s for s, _ in pairs], [t for _, t in pairs]
        if students:
            students[0].all_gather(param_list=students)
        wholes = [student.data.clone() for student in students]
        for parameter in (*students, *teachers):
            parameter.ds_persist = True
        return cls(students, wholes), cls(teachers, wholes)

    def put(self) -> None:
        for parameter, whole in zip(self.parameters, self.wholes, strict=True):
            parameter.data = whole
            parameter.ds_status = type(parameter.ds_status).AVAILABLE


class WholeParameters:
    """Keeps the parameters of one ZeRO-3 module whole. `refresh` on all ranks when shards have changed."""

    def __init__(self, places: Sequence[Place], flats: Sequence[Tensor], fixed: Fixed) -> None:
        self.places, self.flats, self.fixed = places, [flat.detach() for flat in flats], fixed
        self.exchanges = [Exchange(flat) for flat in self.flats]
        self.wholes = [self._room_for(place) for place in places]
        for place in places:
            place.parameter.ds_persist = True  # hooks then neither gather nor release it
        self.refresh()

    def _room_for(self, place: Place) -> Tensor:
        """[n] of a whole parameter. One rank's shard is the whole already, and is not copied."""
        numel, flat_S = math.prod(place.parameter.ds_shape), self.flats[place.group]
        if dist.get_world_size() == 1:
            return flat_S[place.offset : place.offset + numel]
        return flat_S.new_empty(numel)

    @torch.no_grad()
    def refresh(self) -> None:
        if dist.get_world_size() > 1:
            for group, (exchange, flat_S) in enumerate(zip(self.exchanges, self.flats, strict=True)):
                for rank, shard_S in exchange.gather(flat_S):
                    self._put(group, rank, shard_S)
        for place, whole in zip(self.places, self.wholes, strict=True):
            place.parameter.data = whole.view(place.parameter.ds_shape)
            place.parameter.ds_status = type(place.parameter.ds_status).AVAILABLE
        self.fixed.put()

    def _put(self, group: int, rank: int, shard_S: Tensor) -> None:
        for place, whole in zip(self.places, self.wholes, strict=True):
            if place.group == group:
                part = whole[rank * place.length : (rank + 1) * place.length]  # shorter: the last are padded
                part.copy_(shard_S[place.offset : place.offset + len(part)])


class WholeGradients:
    """Sums the gradients of a step's micro-batches in fp32 on each rank, and shares them out once a step."""

    def __init__(self, places: Sequence[Place], flats: Sequence[Tensor]) -> None:
        world_size = dist.get_world_size()
        self.sums = [
            torch.zeros(world_size, flat.numel(), dtype=torch.float32, device=flat.device) for flat in flats
        ]
        self.exchanges = [Exchange(sums_WS[0]) for sums_WS in self.sums]
        self.places = places
        for place in places:
            # Within backward, while a gradient is in the cache; it is then freed before the next one is made.
            into_WL = self.sums[place.group][:, place.offset : place.offset + place.length]
            place.parameter.register_post_accumulate_grad_hook(functools.partial(_move_gradient, into_WL))

    def share_out(self) -> list[Tensor]:
        """[S] a group: this rank's shard of the sum over ranks. Valid until the next backward."""
        return [e.reduce_scatter(sums_WS) for e, sums_WS in zip(self.exchanges, self.sums, strict=True)]

    def of_parameters(self, group: int, shard_S: Tensor) -> list[Tensor]:
        """Views of one group's shard, parameter by parameter."""
        return [shard_S.narrow(0, p.offset, p.length) for p in self.places if p.group == group]

    def clear(self) -> None:
        for sums_WS in self.sums:
            sums_WS.zero_()


class WholeStep:
    """A step of DeepSpeed's ZeRO-3 optimizer around whole weights and gradients of student and teacher.

    DeepSpeed still clips, steps and keeps the shards; its hooks, which gather and reduce, are taken off.
    """

    def __init__(
        self,
        optimizer: Any,
        students: Sequence[Place],
        teachers: Sequence[Place],
        teacher_flats: list[Tensor],
        *,
        fixed: tuple[Fixed, Fixed],
    ) -> None:
        """optimizer: DeepSpeed's stage 3. teacher_flats: laid out like the student's. fixed: of both."""
        self.optimizer = optimizer
        optimizer.parameter_offload._remove_module_hooks()
        for hook in (*optimizer._grad_acc_hooks, *optimizer._leaf_module_hooks):
            hook.remove()
        # It would put the shard together from its parameters, as they come; here it is in one piece.
        optimizer._prepare_fp32_grad_for_sub_group = self._hand_over
        flats = optimizer.fp16_partitioned_groups_flat
        self.student, self.teacher = (
            WholeParameters(students, flats, fixed[0]),
            WholeParameters(teachers, teacher_flats, fixed[1]),
        )
        self.gradients = WholeGradients(students, flats)
        self.shared: list[Tensor] = []

    def refresh(self) -> None:
        """Call on all ranks when shards have changed."""
        self.student.refresh()
        self.teacher.refresh()

    def step(self, measure: Callable[[], None]) -> float:
        """The norm of the gradient over all ranks before it was clipped; `measure` is called then."""
        self.shared = self.gradients.share_out()
        for group, shard_S in enumerate(self.shared):
            # For the norm, which is taken in fp64: parameter by parameter, for the memory.
            self.optimizer.averaged_gradients[group] = self.gradients.of_parameters(group, shard_S)
        measure()
        self.optimizer.step()
        self.gradients.clear()
        self.student.refresh()
        return float(self.optimizer._global_grad_norm)

    def _hand_over(self, group: int) -> None:
        self.optimizer.fp32_partitioned_groups_flat[group].grad = self.shared[group]


@torch.no_grad()
def _move_gradient(into_WL: Tensor, parameter: Tensor) -> None:
    gradient = parameter.grad
    assert gradient is not None, "called after a gradient was accumulated"
    padding = into_WL.numel() - gradient.numel()  # of the last ranks' shards
    flat = pad(gradient.flatten(), (0, padding)) if padding else gradient
    into_WL.add_(flat.reshape(into_WL.shape))
    parameter.grad = None
