"""How errors at small t are weighted in training, and that evaluation does not follow."""

from __future__ import annotations

import pytest
import torch

from tests.worldmodel.synthetic import make_batch, tiny_config, tiny_layout
from worldmodel.config import SelfFlowConfig
from worldmodel.draw import draw
from worldmodel.flow import homogeneous_levels
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses
from worldmodel.train.engine import PlainEngine
from worldmodel.train.loop import evaluate


@pytest.mark.parametrize(("t", "share"), [(0.1, (0.1 / 0.3) ** 2), (0.02, (0.05 / 0.3) ** 2), (0.5, 1.0)])
@pytest.mark.parametrize("prediction", ["x", "v"])
def test_a_larger_loss_min_t_weighs_down_what_is_below_it_and_only_for_x(t, share, prediction):
    layout = tiny_layout(tiny_config())
    batch = make_batch(layout)

    def zeros(tokens, *args, **options):
        return {m: torch.zeros_like(getattr(tokens, f"{m}_{shape}")) for m, shape in SHAPES.items()}

    losses = []
    for loss_min_t in (0.05, 0.3):
        cfg = SelfFlowConfig(rep="none", prediction=prediction, loss_min_t=loss_min_t)
        levels = homogeneous_levels(layout, batch.num_clips, t)
        one = draw(batch, layout, cfg, SampleRandom(0, 0, tuple(batch.sample_ids_B.tolist())), levels=levels)
        losses.append(self_flow_losses(zeros, None, one, cfg, 3).flow)
    assert torch.allclose(losses[1], losses[0] * (share if prediction == "x" else 1.0))
    assert (losses[0] > 0).all()


def test_held_out_losses_do_not_depend_on_it_so_that_runs_can_be_compared():
    rows = []
    for loss_min_t in (0.05, 0.3):
        cfg = tiny_config(objective={"loss_min_t": loss_min_t})
        layout = tiny_layout(cfg)
        rows.append(evaluate(PlainEngine(cfg, layout), [make_batch(layout)], cfg, layout))
    assert rows[0] == rows[1]


SHAPES = {"video": "BNVC", "audio": "BNTC"}
