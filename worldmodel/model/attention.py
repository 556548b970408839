"""Joint self-attention over all tokens, with a key-value cache for rollout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldmodel.model.rope import rotate

# B clips, L query tokens, J key tokens (cached first), H heads, D width, P rotary pairs.

KeyValue = tuple[Tensor, Tensor]


def attend(q_BHLd: Tensor, k_BHJd: Tensor, v_BHJd: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention. On the CPU PyTorch's fused kernel is two to three times slower, both ways,
    than two products with a softmax in fp32 between them; a test holds the two equal."""
    if q_BHLd.device.type != "cpu":
        return F.scaled_dot_product_attention(q_BHLd, k_BHJd, v_BHJd, attn_mask=mask)
    scores_BHLJ = (q_BHLd @ k_BHJd.transpose(-1, -2)).float() * q_BHLd.shape[-1] ** -0.5
    if mask is not None:
        scores_BHLJ = scores_BHLJ.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores_BHLJ, dim=-1).to(v_BHJd.dtype) @ v_BHJd


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, eps=1e-6)


class Attention(nn.Module):
    """Attention with normalised queries and keys. Keys are cached *before* rotation, so positions can be
    re-based."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = width // head_dim
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_q = RmsNorm(head_dim)
        self.norm_k = RmsNorm(head_dim)

    def forward(
        self, x_BLD: Tensor, angles_JP: Tensor, mask: Tensor | None, *, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """mask [B or 1, 1, L, J], True where a query sees a key. Returns the output and this call's unrotated
        keys and values."""
        q, k, v = rearrange(self.qkv(x_BLD), "b l (three h d) -> three b h l d", three=3, h=self.num_heads)
        q, k = self.norm_q(q), self.norm_k(k)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))
        attended = attend(rotate(q, angles_JP[-q.shape[2] :]), rotate(keys, angles_JP), values, mask)
        return self.out(rearrange(attended, "b h l d -> b l (h d)")), (k, v)
