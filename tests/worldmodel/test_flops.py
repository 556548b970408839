"""FLOPs of a step, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.worldmodel.synthetic import tiny_config, tiny_layout
from worldmodel.config import RunConfig
from worldmodel.flops import empty_tokens, seen_pairs, step_flops
from worldmodel.layout import Layout
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import WorldTransformer
from worldmodel.self_flow import tapped_layers

CLIPS = 3


def by_layer(cfg: RunConfig, layout: Layout) -> float:
    """Two for each multiply-add: forward, the gradient of the weight, and that of an input that has one."""
    with torch.device("meta"):
        student = SelfFlowStudent(WorldTransformer(cfg.model, layout), cfg.objective, cfg.data.targets)
    counted = []

    def count(layer: nn.Linear, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        products = 2.0 * out.numel() * layer.in_features
        counted.append(products * (3 if inputs[0].requires_grad else 2))

    for module in student.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    student(
        empty_tokens(layout, CLIPS),
        torch.empty(CLIPS, layout.num_levels, device="meta"),
        torch.empty(CLIPS, layout.length, dtype=torch.int64, device="meta"),
        features=tapped_layers(cfg.objective, cfg.model.depth),
    )
    return sum(counted)


@pytest.mark.parametrize("rep", ["none", "ema", "velocity_heads"])
def test_layers_that_read_data_have_no_gradient_of_it(rep):
    cfg = tiny_config(objective={"rep": rep})
    layout = tiny_layout(cfg)
    attention = 4.0 * CLIPS * seen_pairs(cfg, layout) * cfg.model.width
    products = step_flops(cfg, layout, CLIPS).student - 3 * attention * cfg.model.depth
    assert products == pytest.approx(by_layer(cfg, layout), rel=1e-3)
