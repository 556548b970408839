"""Keeps PyTorch's compiler out of processes that never compile.

Making an optimizer imports torch._dynamo, and DeepSpeed's list of optimizers compiles Muon: 10 s of one core
for each CPU worker before its first step, two thirds of its start-up. Nothing on the CPU is compiled here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

NAME = "torch._dynamo"


class CompilerIsOff(ModuleType):
    """Answers what eager code asks of the compiler: leave this function alone, split no graph, forget all."""

    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)

    @staticmethod
    def disable(fn: Callable | None = None, *args: Any, **kwargs: Any) -> Callable:
        return _leave_alone(fn)

    @staticmethod
    def graph_break(*args: Any, **kwargs: Any) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"torch.compile is off in this process, which asked for {NAME}.{name}")


def turn_compiler_off() -> None:
    """Call before the first optimizer of a process. Does nothing where the compiler is loaded already, or
    will be: diffusers imports torchao, where it is installed, and torchao asks for it."""
    if NAME not in sys.modules and find_spec("torchao") is None:
        stand_in = CompilerIsOff(NAME)
        sys.modules[NAME] = stand_in
        torch._dynamo = stand_in  # pyright: ignore[reportAttributeAccessIssue]
        torch.compile = _leave_alone  # pyright: ignore[reportAttributeAccessIssue]


def _leave_alone(fn: Callable | None = None, *args: Any, **kwargs: Any) -> Callable:
    """In place of torch.compile and torch.compiler.disable, as a call and as a decorator."""
    return fn if fn is not None else lambda given: given
