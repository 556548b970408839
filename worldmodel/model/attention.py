"""Joint self-attention over all tokens, with a key-value cache for rollout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldmodel.model.rope import rotate

# B clips, L query tokens, J key tokens (cached first), H heads, D width, P rotary pairs.

KeyValue = tuple[Tensor, Tensor]


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, eps=1e-6)


class Attention(nn.Module):
    """Attention with normalised queries and keys. Keys are cached *before* rotation, so positions can be re-based."""

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
        """mask [B or 1, 1, L, J], True where a query sees a key. Returns the output and this call's unrotated keys and values."""
        q, k, v = rearrange(self.qkv(x_BLD), "b l (three h d) -> three b h l d", three=3, h=self.num_heads)
        q, k = self.norm_q(q), self.norm_k(k)
        keys, values = (k, v) if past is None else (torch.cat([past[0], k], 2), torch.cat([past[1], v], 2))
        attended = F.scaled_dot_product_attention(
            rotate(q, angles_JP[-q.shape[2] :]), rotate(keys, angles_JP), values, attn_mask=mask
        )
        return self.out(rearrange(attended, "b h l d -> b l (h d)")), (k, v)
