"""The embedded text encoder: bytes, so that every language works with nothing downloaded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# B clips, N bytes, C inner channels, D width.

NUM_BYTES = 257  # 0 is padding, byte value b is b + 1
INNER_WIDTH, LAYERS, REACH = 64, 2, 7  # of the encoder: it sees 6 bytes to either side


def encode_bytes(text: str, num_tokens: int) -> Tensor:
    """UTF-8 bytes + 1 as int64 [N], padded with 0 and cut to num_tokens."""
    values = [byte + 1 for byte in text.encode("utf-8")[:num_tokens]]
    return torch.tensor(values + [0] * (num_tokens - len(values)), dtype=torch.int64)


def encode_texts(caption: str, transcript: str, *, caption_bytes: int, speech_bytes: int) -> Tensor:
    """What `LatentBatch.text_BN` holds of one clip. A model without a place for transcripts reads one where
    there is no caption."""
    if not speech_bytes:
        return encode_bytes(caption or transcript, caption_bytes)
    return torch.cat([encode_bytes(caption, caption_bytes), encode_bytes(transcript, speech_bytes)])


class ByteEmbedding(nn.Module):
    """One token a byte."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_BYTES, width)

    def forward(self, text_BN: Tensor) -> Tensor:
        return self.embedding(text_BN)


class ByteEncoder(nn.Module):
    """[B, N] bytes -> [B, N / patch, D]: two convolutions, so that a token knows the words that it cuts."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch, inner = patch, INNER_WIDTH
        self.embedding = nn.Embedding(NUM_BYTES, inner)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inner, inner, REACH, padding=REACH // 2) for _ in range(LAYERS)
        )
        self.out = nn.Linear(inner * patch, width)

    def forward(self, text_BN: Tensor) -> Tensor:
        there_B1N = (text_BN > 0)[:, None].to(self.out.weight.dtype)
        x_BCN = self.embedding(text_BN).mT * there_B1N
        for convolution in self.convolutions:
            x_BCN = (x_BCN + F.gelu(convolution(x_BCN), approximate="tanh")) * there_B1N
        return self.out(rearrange(x_BCN, "b c (n p) -> b n (p c)", p=self.patch))
