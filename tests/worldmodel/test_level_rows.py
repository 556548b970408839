"""Rows of a table by one-hot products and by indices are the same, both ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.worldmodel.synthetic import many_levels, tiny_config, tiny_layout
from worldmodel.config import NoiseConfig
from worldmodel.model.level_rows import LevelOfTokens


def test_rows_by_index_equal_one_hot_products_with_gradients():
    layout = tiny_layout(tiny_config())
    index_BL = many_levels(layout, NoiseConfig(first_frame=0.5)).level_of_BL[:16]
    assert (index_BL % 2 == 1).any(), "some tokens are at the second level of their slot"
    assert (index_BL == layout.first_frame_slot).any(), "some are first frames"
    one_hot_BLK = F.one_hot(index_BL, layout.num_levels).float()
    tables = [torch.randn(16, layout.num_levels, 6, generator=torch.Generator().manual_seed(0)) for _ in "ab"]
    weights_BLD = torch.randn(16, layout.length, 6, generator=torch.Generator().manual_seed(1))
    found = []
    for table, at in zip(tables, (LevelOfTokens(one_hot_BLK), LevelOfTokens(index_BL=index_BL)), strict=True):
        table.requires_grad_()
        rows = at.rows_of(table, 2, layout)
        assert [part.shape for part in rows] == [(16, layout.length, 3)] * 2
        (torch.cat(rows, -1) * weights_BLD).sum().backward()
        assert table.grad is not None
        found.append((torch.cat(rows, -1).detach(), table.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
