"""The embedded text encoder: bytes, so that every language works with nothing downloaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# B clips, N text tokens, D width.

NUM_BYTES = 257  # 0 is padding, byte value b is b + 1


def encode_bytes(text: str, num_tokens: int) -> Tensor:
    """UTF-8 bytes + 1 as int64 [N], padded with 0 and cut to num_tokens."""
    values = [byte + 1 for byte in text.encode("utf-8")[:num_tokens]]
    return torch.tensor(values + [0] * (num_tokens - len(values)), dtype=torch.int64)


class ByteEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_BYTES, width)

    def forward(self, text_BN: Tensor) -> Tensor:
        return self.embedding(text_BN)
