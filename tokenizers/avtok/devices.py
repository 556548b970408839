"""Moves a codec to the device that it computes on. What goes in and what comes out stays on the CPU."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Codec = TypeVar("Codec", bound=Any)


def on_device(codec: Codec, device: str) -> Codec:
    """The codec with its tensors and networks there. ValueError where this process has no such device."""
    check_device(device)
    moved: dict[str, Any] = {}
    for field in fields(codec):
        value = getattr(codec, field.name)
        if isinstance(value, Tensor | nn.Module):
            moved[field.name] = value.to(device)
        elif isinstance(model := getattr(value, "model", None), nn.Module):
            model.to(device)  # its adapters hold the model itself
    return replace(codec, **moved)


def check_device(device: str) -> None:
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device}: this process sees no CUDA GPU; set data.encode_gpus=0 to encode on CPUs"
        )


def device_of(module: nn.Module) -> torch.device:
    """Where its first weight is."""
    return next(module.parameters()).device
