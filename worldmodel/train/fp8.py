"""Matrix products of the blocks in FP8, by torchao. Alone knows torchao.

Attention's and the feed-forwards' inputs, weights and gradients are scaled to 8 bits as they go into a
product (one scale a tensor, e4m3 forward and e5m2 for gradients); what is kept, summed up and stored stays
as it was.
"""

from __future__ import annotations

import torch
from torch import nn

from worldmodel.model.transformer import WorldTransformer

# Of each block. Conditions and noise levels have few rows: scaling them costs more than it saves.
LAYERS = ("attention.qkv", "attention.out", "feed_forward.video.", "feed_forward.audio.")
MULTIPLE = 16  # of both sides of a weight: the units take no others
UNITS_FROM = (8, 9)  # compute capability: Ada, Hopper, Blackwell


def turn_to_fp8(transformer: WorldTransformer, device: torch.device) -> list[str]:
    """Replaces linear layers by torchao's, with the same parameters under the same names; returns which.
    On a CPU the 8 bits are emulated. ValueError for a GPU without FP8 units, and a model too narrow."""
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < UNITS_FROM:
        name, (major, minor) = torch.cuda.get_device_name(device), capability
        raise ValueError(
            f"train.fp8=true needs a GPU with FP8 units (compute capability 8.9), and {name} has "
            f"{major}.{minor}; set train.fp8=false"
        )
    from torchao.float8 import (  # pyright: ignore[reportMissingImports]
        Float8LinearConfig,
        convert_to_float8_training,
    )

    settings = Float8LinearConfig(emulate=device.type == "cpu", pad_inner_dim=True)  # tokens make no 16s
    turned = [name for name, module in transformer.blocks.named_modules() if _fits(module, name)]
    if not turned:
        raise ValueError(
            f"train.fp8=true: no layer of the blocks has both sides a multiple of {MULTIPLE}; set "
            "model.width to one, or train.fp8=false"
        )
    convert_to_float8_training(transformer.blocks, module_filter_fn=_fits, config=settings)
    return turned


def _fits(module: nn.Module, name: str) -> bool:
    if not isinstance(module, nn.Linear) or module.in_features % MULTIPLE or module.out_features % MULTIPLE:
        return False
    return any(layer in f"{name}." for layer in LAYERS)
