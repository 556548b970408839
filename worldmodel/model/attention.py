"""Joint self-attention over all tokens, with a key-value cache for rollout.

On the CPU two products with a softmax between them, on a GPU PyTorch's fused kernels: FlexAttention, which
skips what nobody sees, where the blocks are compiled, and scaled_dot_product_attention elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldmodel.model.rope import Rotary, rotate
from worldmodel.model.sequence_parallel import SequencePart
from worldmodel.model.visibility import Visibility

# B clips, L query tokens, J key tokens (cached first), H heads, D width, P rotary pairs.

KeyValue = tuple[Tensor, Tensor]
# A token sees itself, so no row is empty. TMA where there is one (Hopper); measured in benchmarks/results.
FLEX_OPTIONS: dict[str, Any] = {"ROWS_GUARANTEED_SAFE": True, "PRESCALE_QK": True, "fwd_USE_TMA": True}
# By head width, where PyTorch's own choice is slow: 185 instead of 30 TFLOP/s on an H100.
FLEX_BLOCKS: dict[int, dict[str, int]] = {
    64: {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_stages": 3, "fwd_num_warps": 8}
}


def attend(q_BHLd: Tensor, k_BHJd: Tensor, v_BHJd: Tensor, visibility: Visibility) -> Tensor:
    """Softmax attention. On the CPU PyTorch's fused kernel is two to three times slower, both ways, than two
    products with a softmax between them (fp32 inside, rounded outside); a test holds the two equal."""
    if visibility.blocks is not None:
        from torch.nn.attention.flex_attention import flex_attention

        options: Any = FLEX_OPTIONS | FLEX_BLOCKS.get(q_BHLd.shape[-1], {})
        attended = flex_attention(
            q_BHLd, k_BHJd, v_BHJd, block_mask=visibility.blocks, kernel_options=options
        )
        assert isinstance(attended, Tensor)
        return attended
    bias = visibility.bias
    if q_BHLd.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BHLd, k_BHJd, v_BHJd, attn_mask=bias)
    return products(q_BHLd, k_BHJd, v_BHJd, bias)


def products(q_BHLd: Tensor, k_BHJd: Tensor, v_BHJd: Tensor, bias: Tensor | None) -> Tensor:
    """What `attend` does on the CPU."""
    scores_BHLJ = (q_BHLd * q_BHLd.shape[-1] ** -0.5) @ k_BHJd.transpose(-1, -2)
    assert bias is not None, "nothing is compiled on the CPU"
    scores_BHLJ += bias  # in place: at these sizes memory traffic is what costs
    return torch.softmax(scores_BHLJ, dim=-1) @ v_BHJd


class Attention(nn.Module):
    """Attention with normalised queries and keys. Keys are cached *before* rotation, so positions can be
    re-based."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = width // head_dim
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        # As in ViT-22B (arXiv 2302.05442): keeps scores bounded. Unlike an RMS norm it is one kernel on CPUs.
        self.norm_q = nn.LayerNorm(head_dim, eps=1e-6, bias=False)
        self.norm_k = nn.LayerNorm(head_dim, eps=1e-6, bias=False)

    def forward(
        self, x_BLD: Tensor, rotary: Rotary, visibility: Visibility, *, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """visibility: of L queries and J keys; rotary is of all J keys. Returns the output and this call's
        unrotated keys and values."""
        q, k, v = rearrange(self.qkv(x_BLD), "b l (three h d) -> three b h l d", three=3, h=self.num_heads)
        q, k = self.norm_q(q), self.norm_k(k)
        if visibility.shared is not None:
            attended = _attend_shared(q, k, v, rotary, visibility, visibility.shared)
            return self.out(rearrange(attended, "b h l d -> b l (h d)")), (k, v)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))
        attended = attend(rotate(q, rotary.last(q.shape[2])), rotate(keys, rotary), values, visibility)
        return self.out(rearrange(attended, "b h l d -> b l (h d)")), (k, v)


def _attend_shared(
    q: Tensor, k: Tensor, v: Tensor, rotary: Rotary, visibility: Visibility, shared: SequencePart
) -> Tensor:
    """[B, H, own, d] of tokens that lie on several ranks: each attends with all tokens and a share of the
    heads."""
    q, k, v = shared.to_heads(torch.cat([q, k, v])).chunk(3)
    attended = attend(rotate(q, rotary), rotate(k, rotary), v, visibility)
    return shared.to_tokens(attended)
