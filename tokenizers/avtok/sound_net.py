"""The learned sound codec's network: log-mel energies to few channels, and back to a spectrum with its phase.

The encoder is causal. The decoder looks `LOOK_AHEAD` steps ahead and overlaps windows, which together is its
declared latency; it has learned phase, so nothing has to be searched for as Griffin-Lim does (Vocos, arXiv
2306.00814, has the same head).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

# B clips, N samples, T steps, F short frames, M mel channels, C latent channels, D width, K frequency bins.

RATE_HZ, NUM_FFT, WINDOW, HOP, NUM_MELS = 16000, 1024, 1000, 250, 64
FLOOR = 1e-3
LOG_MEAN, LOG_SCALE = -2.4, 3.4
ENCODER_KERNEL = 3
LOOK_AHEAD = 3  # steps, one in each of the first decoder blocks
OVERLAP = 1  # steps: a window of the decoder reaches this far beyond its own step
# Two short windows a step: in windows as long as the encoder's, an attack is smeared to before it happens.
SHORT_FFT, SHORT_WINDOW, SHORT_HOP = 512, 500, 125


@dataclass(frozen=True)
class SoundNetConfig:
    channels: int = 32
    encoder_width: int = 128
    encoder_blocks: int = 3
    decoder_width: int = 224
    decoder_blocks: int = 6
    kernel: int = 7


class StepBlock(nn.Module):
    """A step looks at `kernel` steps, of which `ahead` lie in the future, then at itself."""

    def __init__(self, width: int, kernel: int, ahead: int) -> None:
        super().__init__()
        self.reach = (kernel - 1 - ahead, ahead)
        self.along = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x_BTD: Tensor, *, padded: bool = True) -> Tensor:
        """padded: zeros stand for steps before the start and after the end; else the output is shorter."""
        x_BDT = rearrange(x_BTD, "b t d -> b d t")
        seen_BTD = rearrange(self.along(F.pad(x_BDT, self.reach) if padded else x_BDT), "b d t -> b t d")
        kept_BTD = x_BTD if padded else x_BTD[:, self.reach[0] : x_BTD.shape[1] - self.reach[1]]
        return kept_BTD + self.scale * self.down(F.gelu(self.up(self.norm(seen_BTD)), approximate="tanh"))


class SoundNet(nn.Module):
    """Samples [B, N] at 16 kHz <-> latents [B, T, C] at 64 steps/s."""

    window: Tensor
    short_window: Tensor
    mel_KM: Tensor
    mean_C: Tensor
    std_C: Tensor

    def __init__(self, cfg: SoundNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("short_window", torch.hann_window(SHORT_WINDOW), persistent=False)
        mel_KM = melscale_fbanks(
            NUM_FFT // 2 + 1, 20.0, RATE_HZ / 2, NUM_MELS, RATE_HZ, norm=None, mel_scale="htk"
        )
        self.register_buffer("mel_KM", mel_KM, persistent=False)
        self.enter = nn.Linear(NUM_MELS, cfg.encoder_width)
        self.encoder = nn.ModuleList(
            StepBlock(cfg.encoder_width, ENCODER_KERNEL, 0) for _ in range(cfg.encoder_blocks)
        )
        self.leave = nn.Linear(cfg.encoder_width, cfg.channels)
        self.register_buffer("mean_C", torch.zeros(cfg.channels))
        self.register_buffer("std_C", torch.ones(cfg.channels))
        self.decoder_in = nn.Linear(cfg.channels, cfg.decoder_width)
        self.decoder = nn.ModuleList(
            StepBlock(cfg.decoder_width, cfg.kernel, int(number < LOOK_AHEAD))
            for number in range(cfg.decoder_blocks)
        )
        self.norm = nn.LayerNorm(cfg.decoder_width)
        self.head = nn.Linear(cfg.decoder_width, HOP // SHORT_HOP * 2 * (SHORT_FFT // 2 + 1))
        nn.init.normal_(self.head.weight, std=0.02)

    @property
    def context_steps(self) -> int:
        """Steps before the first one that the encoder needs, beside the window of the first of these."""
        return self.cfg.encoder_blocks * (ENCODER_KERNEL - 1)

    @property
    def left_context(self) -> int:
        """Samples before a cut that its latents depend on."""
        return self.context_steps * HOP + WINDOW - HOP

    def encode(self, samples_BN: Tensor) -> Tensor:
        """Samples, the first `left_context` of which come before step 0 -> [B, T, C], not yet normalised."""
        rest = (NUM_FFT - WINDOW) // 2  # torch centres a short window in its frame
        frames_BKT = torch.stft(
            F.pad(samples_BN, (rest, rest)),
            NUM_FFT,
            HOP,
            WINDOW,
            self.window,
            center=False,
            return_complex=True,
        ).abs()
        mel_BTM = rearrange(frames_BKT, "b k t -> b t k") @ self.mel_KM
        x_BTD = self.enter((torch.log(mel_BTM + FLOOR) - LOG_MEAN) / LOG_SCALE)
        for block in self.encoder:
            x_BTD = block(x_BTD, padded=False)
        return self.leave(x_BTD)

    def decode(self, latents_BTC: Tensor) -> Tensor:
        """Normalised latents [B, T, C] -> samples [B, 250 T]."""
        x_BTD = self.decoder_in(latents_BTC)
        for block in self.decoder:
            x_BTD = block(x_BTD)
        frames = rearrange(self.head(self.norm(x_BTD)).float(), "b t (f k) -> b (t f) k", f=HOP // SHORT_HOP)
        log_BFK, phase_BFK = frames.chunk(2, dim=-1)
        magnitude_BFK = torch.exp(log_BFK.clamp(max=6.0))
        spectrum = torch.complex(magnitude_BFK * phase_BFK.cos(), magnitude_BFK * phase_BFK.sin())
        return overlap_add(torch.fft.irfft(spectrum, n=SHORT_FFT)[..., :SHORT_WINDOW] * self.short_window)


def overlap_add(frames_BFN: Tensor) -> Tensor:
    """Windowed frames [B, F, 500], each centred on its own 125 samples -> [B, 125 F]."""
    num, before = frames_BFN.shape[1], (SHORT_WINDOW - SHORT_HOP) // 2
    total = (num - 1) * SHORT_HOP + SHORT_WINDOW
    summed = F.fold(
        rearrange(frames_BFN, "b f n -> b n f"),
        (1, total),
        kernel_size=(1, SHORT_WINDOW),
        stride=(1, SHORT_HOP),
    )
    # Hann windows a quarter apart add up to 2 everywhere but at the ends of a clip.
    return summed[:, 0, 0, before : before + num * SHORT_HOP] / 2


def multi_resolution_stft_loss(decoded_BN: Tensor, true_BN: Tensor) -> Tensor:
    """Relative L1 of magnitudes plus L1 of their logarithms, over windows of 4 to 128 ms."""
    loss = decoded_BN.new_zeros(())
    sizes = (64, 128, 256, 512, 1024, 2048)
    for size in sizes:
        window = torch.hann_window(size, device=decoded_BN.device)
        ours, theirs = (
            torch.stft(x, size, size // 4, size, window, return_complex=True).abs() * math.sqrt(256 / size)
            for x in (decoded_BN, true_BN)
        )
        relative = (ours - theirs).abs().sum((1, 2)) / (theirs.sum((1, 2)) + 1.0)
        loss = loss + relative.mean() + ((ours + FLOOR).log() - (theirs + FLOOR).log()).abs().mean()
    return loss / len(sizes)
