"""Who is which token: modality, chunk, seconds, patch. The ground truth of every mask and position."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from avtok.spec import CodecSpec
from worldmodel.config import RunConfig

# B clips, L tokens (text, then chunk by chunk: action, video, audio), T latent steps, H W latent grid, C
# channels.

TEXT, ACTION, VIDEO, AUDIO = 0, 1, 2, 3
MODALITIES = ("text", "action", "video", "audio")
LEARNED = ("video", "audio")  # what is denoised; the others are conditions
PerToken = Literal["modality_L", "chunk_L", "positions_L3", "level_slot_L"]
SPEECH_BYTES_PER_S = 14.0  # English at 150 to 180 words a minute


@dataclass(frozen=True)
class Layout:
    """The token sequence of one bucket. Chunks are `chunk_s` long and hold one action token, video and audio
    tokens."""

    text_tokens: int
    num_chunks: int
    video_steps: int  # latent steps of one chunk
    video_grid: tuple[int, int]  # tokens of one step, rows and columns
    patch: tuple[int, int]
    video_channels: int
    audio_steps: int  # latent steps of one chunk
    audio_channels: int
    chunk_frames: int
    action_dim: int
    chunk_s: float
    audio_patch: int = 1  # latent steps of one token
    speech_tokens: int = 0  # the last of the text tokens: what is said, after what is seen
    text_patch: int = 1  # bytes of one token

    @classmethod
    def from_specs(cls, cfg: RunConfig, video: CodecSpec, audio: CodecSpec) -> Layout:
        """Layout of a training clip. ValueError when codec, patch and chunk do not divide."""
        frames, samples = cfg.model.chunk_frames, cfg.data.sample_rate * cfg.chunk_s
        if frames % video.stride_units:
            near = max(video.stride_units, round(frames / video.stride_units) * video.stride_units)
            raise ValueError(
                f"model.chunk_frames={frames} is not a multiple of the video codec's stride "
                f"{video.stride_units}; use {near}"
            )
        if abs(samples / audio.stride_units - round(samples / audio.stride_units)) > 1e-6:
            raise ValueError(
                f"one chunk is {samples} audio samples, not a multiple of the audio codec's stride "
                f"{audio.stride_units}; change data.fps, data.sample_rate or model.chunk_frames"
            )
        steps = round(samples / audio.stride_units)
        if steps % cfg.model.audio_patch:
            raise ValueError(
                f"model.audio_patch={cfg.model.audio_patch} does not divide the {steps} audio latents "
                "of a chunk"
            )
        _, height, width, channels = video.latent_shape(1, cfg.data.size)
        if height % cfg.model.patch[0] or width % cfg.model.patch[1]:
            raise ValueError(
                f"model.patch={list(cfg.model.patch)} does not divide the latent grid {height}x{width} "
                f"of data.size={list(cfg.data.size)}"
            )
        return cls(
            text_tokens=(cfg.model.text_tokens + cfg.model.speech_bytes) // cfg.model.text_patch,
            num_chunks=cfg.num_chunks,
            video_steps=frames // video.stride_units,
            video_grid=(height // cfg.model.patch[0], width // cfg.model.patch[1]),
            patch=cfg.model.patch,
            video_channels=channels,
            audio_steps=steps,
            audio_channels=audio.channels,
            chunk_frames=frames,
            action_dim=cfg.model.action_dim,
            chunk_s=cfg.chunk_s,
            audio_patch=cfg.model.audio_patch,
            speech_tokens=cfg.model.speech_bytes // cfg.model.text_patch,
            text_patch=cfg.model.text_patch,
        )

    def of(self, *, num_chunks: int, text: bool) -> Layout:
        """The same tokens for another number of chunks, with or without the text before them."""
        if text:
            return replace(self, num_chunks=num_chunks)
        return replace(self, num_chunks=num_chunks, text_tokens=0, speech_tokens=0)

    def of_latents(self, video_BTHWC: Tensor) -> Layout:
        """The layout of a micro-batch of another bucket: its latents say how long and how large its clips
        are."""
        _, steps, height, width, _ = video_BTHWC.shape
        grid = (height // self.patch[0], width // self.patch[1])
        return _of_shape(self, steps // self.video_steps, grid)

    @property
    def text_bytes(self) -> int:
        """Bytes of caption and transcript together."""
        return self.text_tokens * self.text_patch

    @property
    def caption_bytes(self) -> int:
        return (self.text_tokens - self.speech_tokens) * self.text_patch

    @property
    def video_tokens(self) -> int:
        """Video tokens of one chunk."""
        return self.video_steps * self.video_grid[0] * self.video_grid[1]

    @property
    def audio_tokens(self) -> int:
        """Audio tokens of one chunk."""
        return self.audio_steps // self.audio_patch

    @property
    def parts(self) -> list[int]:
        """Tokens of one chunk: action, video, audio."""
        return [1, self.video_tokens, self.audio_tokens]

    @property
    def video_values(self) -> int:
        """Numbers in one video token."""
        return self.video_channels * self.patch[0] * self.patch[1]

    @property
    def audio_values(self) -> int:
        """Numbers in one audio token."""
        return self.audio_channels * self.audio_patch

    @property
    def tokens_per_chunk(self) -> int:
        return sum(self.parts)

    @property
    def length(self) -> int:
        return self.text_tokens + self.num_chunks * self.tokens_per_chunk

    @property
    def num_levels(self) -> int:
        """Distinct noise levels of a row: t and s for each chunk of video and audio, one of a first frame
        that is given, and one for conditions."""
        return 4 * self.num_chunks + 2

    @property
    def first_frame_slot(self) -> int:
        """Index of the level of a first frame that is given."""
        return 4 * self.num_chunks

    @cached_property
    def modality_L(self) -> Tensor:
        chunk = [ACTION] + [VIDEO] * self.video_tokens + [AUDIO] * self.audio_tokens
        return torch.tensor([TEXT] * self.text_tokens + chunk * self.num_chunks)

    @cached_property
    def chunk_L(self) -> Tensor:
        """Chunk of each token; -1 for text."""
        chunks = torch.arange(self.num_chunks).repeat_interleave(self.tokens_per_chunk)
        return torch.cat([torch.full((self.text_tokens,), -1), chunks])

    @cached_property
    def positions_L3(self) -> Tensor:
        """Seconds (middle of the token), row and column of each token, float32."""
        rows, columns = self.video_grid
        step_s = self.chunk_s / self.video_steps
        video = torch.stack(
            torch.meshgrid(
                (torch.arange(self.video_steps) + 0.5) * step_s,
                torch.arange(rows, dtype=torch.float32),
                torch.arange(columns, dtype=torch.float32),
                indexing="ij",
            ),
            dim=-1,
        )
        audio = torch.zeros(self.audio_tokens, 3)
        audio[:, 0] = (torch.arange(self.audio_tokens) + 0.5) * self.chunk_s / self.audio_tokens
        chunk = torch.cat([torch.zeros(1, 3), rearrange(video, "t r c p -> (t r c) p"), audio])
        chunks = chunk.repeat(self.num_chunks, 1)
        chunks[:, 0] += torch.arange(self.num_chunks).repeat_interleave(self.tokens_per_chunk) * self.chunk_s
        text = torch.zeros(self.text_tokens, 3)
        text[:, 1] = torch.arange(self.text_tokens)  # order of the bytes; a caption has no time of its own
        if self.speech_tokens:  # what is said lies along the clip: attention finds it by distance
            order = torch.arange(self.speech_tokens)
            text[-self.speech_tokens :, 0] = (order + 0.5) * self.text_patch / SPEECH_BYTES_PER_S
        return torch.cat([text, chunks]).float()

    @cached_property
    def level_slot_L(self) -> Tensor:
        """Index of a token's t level; its s level is the next one. Text and actions use the last, clean
        level."""
        slot = (self.chunk_L * 2 + (self.modality_L == AUDIO)) * 2
        condition = (self.modality_L == TEXT) | (self.modality_L == ACTION)
        return torch.where(condition, torch.tensor(4 * self.num_chunks + 1), slot)

    def window_mask_LL(self, *, window_chunks: int, sink_chunks: int) -> Tensor:
        """True where query (row) may see key (column): its window, the sinks, its own chunk in full, and all
        text."""
        return chunk_sees(self.chunk_L[:, None], self.chunk_L[None, :], window_chunks, sink_chunks)

    def text_valid(self, text_BN: Tensor) -> Tensor:
        """[B, bytes] -> [B, text tokens]: a token counts when any of its bytes is there."""
        return rearrange(text_BN > 0, "b (n p) -> b n p", p=self.text_patch).any(-1)

    def pack_video(self, latents_BTHWC: Tensor) -> Tensor:
        """[B, T, H, W, C] -> tokens [B, chunks, video tokens, patch * C]."""
        return rearrange(
            latents_BTHWC,
            "b (k t) (r p) (c q) d -> b k (t r c) (p q d)",
            k=self.num_chunks,
            p=self.patch[0],
            q=self.patch[1],
        )

    def unpack_video(self, tokens_BKNC: Tensor) -> Tensor:
        """Inverse of pack_video."""
        rows, columns = self.video_grid
        return rearrange(
            tokens_BKNC,
            "b k (t r c) (p q d) -> b (k t) (r p) (c q) d",
            r=rows,
            c=columns,
            p=self.patch[0],
            q=self.patch[1],
        )

    def pack_audio(self, latents_BTC: Tensor) -> Tensor:
        """[B, T, C] -> tokens [B, chunks, audio tokens, patch * C]."""
        return rearrange(latents_BTC, "b (k t p) d -> b k t (p d)", k=self.num_chunks, p=self.audio_patch)

    def unpack_audio(self, tokens_BKNC: Tensor) -> Tensor:
        """Inverse of pack_audio."""
        return rearrange(tokens_BKNC, "b k t (p d) -> b (k t p) d", p=self.audio_patch)

    def chunk_valid(self, valid_BT: Tensor) -> Tensor:
        """[B, T] validity of latent steps -> [B, chunks]: a chunk counts when all its steps are real."""
        return rearrange(valid_BT, "b (k t) -> b k t", k=self.num_chunks).all(-1)

    def pack_actions(self, actions_BFA: Tensor) -> Tensor:
        """[B, F, A] -> [B, chunks, frames * A]. action[i] leads from frame i to i + 1, so the token of a
        chunk holds the actions that led *into* its frames: shifted by one, zeros before the first frame."""
        shifted = torch.cat([torch.zeros_like(actions_BFA[:, :1]), actions_BFA[:, :-1]], dim=1)
        return rearrange(shifted, "b (k f) a -> b k (f a)", k=self.num_chunks)

    def pack_actions_valid(self, valid_BF: Tensor) -> Tensor:
        """[B, F] -> [B, chunks]: whether all actions of a chunk's token are known. Shifted like the actions;
        nothing leads into the first frame, so it counts as the second."""
        return self.chunk_valid(torch.cat([valid_BF[:, :1], valid_BF[:, :-1]], dim=1))


def chunk_sees(query: Tensor, key: Tensor, window_chunks: int, sink_chunks: int) -> Tensor:
    """Whether tokens of one chunk see those of another. Text is chunk -1: all see it, it sees itself."""
    in_window = (key <= query) & ((query - key < window_chunks) | (key < sink_chunks))
    return (key < 0) | in_window


@lru_cache(maxsize=256)
def on_device(layout: Layout, name: PerToken, device: torch.device) -> Tensor:
    """One of a layout's tensors on a device, kept: a copy from the host waits for what a GPU has to do."""
    return getattr(layout, name).to(device)


@lru_cache(maxsize=64)
def _of_shape(layout: Layout, num_chunks: int, video_grid: tuple[int, int]) -> Layout:
    """Kept, with the masks and positions that hang on it: each step asks for the layouts of its buckets."""
    return replace(layout, num_chunks=num_chunks, video_grid=video_grid)
