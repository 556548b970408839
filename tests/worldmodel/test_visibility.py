"""The blocks that FlexAttention visits hold everything that the mask lets a token see, and are few."""

from __future__ import annotations

import pytest
import torch

from tests.worldmodel.synthetic import tiny_config, tiny_layout
from worldmodel.layout import Layout
from worldmodel.model.attention import attend
from worldmodel.model.visibility import BLOCK, Visibility, attention_mask

# B clips, L tokens.

WINDOWS = [(3, 1), (2, 0), (1, 2), (40, 0)]


@pytest.fixture
def layout() -> Layout:
    """40 chunks: six blocks, the last one cut short."""
    layout = tiny_layout(tiny_config()).of(num_chunks=80, text=True)
    assert layout.length > 5 * BLOCK
    assert layout.length % BLOCK
    return layout


def some_valid(layout: Layout) -> torch.Tensor:
    valid_BL = torch.rand(3, layout.length, generator=torch.Generator().manual_seed(0)) > 0.2
    valid_BL[1] = True
    valid_BL[2, BLOCK : 3 * BLOCK] = False  # whole blocks that nobody may see
    return valid_BL


@pytest.mark.parametrize(("window", "sink"), WINDOWS)
def test_blocks_hold_all_that_is_seen(layout: Layout, window: int, sink: int):
    valid_BL = some_valid(layout)
    blocks = Visibility.by_blocks(layout, valid_BL, window_chunks=window, sink_chunks=sink).blocks
    assert blocks is not None
    mask = attention_mask(layout.window_mask_LL(window_chunks=window, sink_chunks=sink), valid_BL)
    length = layout.length
    positions = torch.arange(length)
    for clip in range(3):
        by_mod = blocks.mask_mod(torch.tensor(clip), torch.tensor(0), positions[:, None], positions[None, :])
        assert torch.equal(by_mod, mask[clip, 0])
    padded = torch.zeros(3, len_blocks := -(-length // BLOCK) * BLOCK, len_blocks, dtype=torch.bool)
    padded[:, :length, :length] = mask[:, 0]
    tiles = padded.unflatten(1, (-1, BLOCK)).unflatten(3, (-1, BLOCK))
    visited = blocks.to_dense()[:, 0].bool()
    assert torch.equal(visited, tiles.any(4).any(2)), (
        "no block that is seen is left out, none visited in vain"
    )
    full = torch.zeros_like(visited)
    for clip in range(3):
        for query in range(visited.shape[1]):
            number = int(blocks.full_kv_num_blocks[clip, 0, query])
            full[clip, query, blocks.full_kv_indices[clip, 0, query, :number].long()] = True
    assert torch.equal(full, tiles.all(4).all(2))
    assert full[1].any() == (window == 40)


def test_flex_attention_sees_what_the_bias_lets_it(layout: Layout):
    q, k, v = torch.randn(3, 3, 2, layout.length, 16, generator=torch.Generator().manual_seed(0))
    valid_BL = some_valid(layout)
    structure = layout.window_mask_LL(window_chunks=3, sink_chunks=1)
    bias = Visibility.by_bias(structure, valid_BL, q.dtype)
    blocks = Visibility.by_blocks(layout, valid_BL, window_chunks=3, sink_chunks=1)
    with pytest.warns(UserWarning, match="without torch.compile"):
        seen = attend(q, k, v, blocks)
    torch.testing.assert_close(seen, attend(q, k, v, bias))
