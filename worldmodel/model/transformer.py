"""One transformer over text, action, video and audio tokens in a single packed sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worldmodel.config import ModelConfig
from worldmodel.layout import ACTION, AUDIO, MODALITIES, TEXT, VIDEO, Layout, on_device
from worldmodel.model.attention import KeyValue
from worldmodel.model.block import Block, Modulation, normalised
from worldmodel.model.level_rows import LevelOfTokens, join_text, split_text
from worldmodel.model.rope import Rotary, rotary_angles
from worldmodel.model.sequence_parallel import SequenceGroup
from worldmodel.model.stem import CausalStem, Estimate
from worldmodel.model.text import ByteEmbedding, ByteEncoder
from worldmodel.model.visibility import Visibility, window_structure

# B clips, L tokens (text, then chunk by chunk: action, video, audio), D width, K distinct noise levels of a
# row, N chunks, J key tokens.

LEVEL_FEATURES = 256


@dataclass(frozen=True)
class Tokens:
    """Packed inputs of one forward. valid_BL is False for padding and absent media: such tokens are seen by
    none."""

    video_BNVC: Tensor
    audio_BNTC: Tensor
    text_BN: Tensor | None
    actions_BNA: Tensor
    actions_valid_BN: Tensor
    valid_BL: Tensor
    group_BL: Tensor | None = None  # a token sees group 0 and its own; None: there are no groups


class LevelEmbedding(nn.Module):
    """Noise level and modality of each of the K levels -> [B, K, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(LEVEL_FEATURES, width)
        self.second = nn.Linear(width, width)
        self.modality = nn.Embedding(3, width)  # video, audio, condition

    def forward(self, level_BK: Tensor) -> Tensor:
        half = LEVEL_FEATURES // 2
        frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device=level_BK.device) / half)
        angles = level_BK.float()[..., None] * 1000 * frequencies  # fp32 until after sin and cos
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.first.weight.dtype)
        slots = torch.arange(level_BK.shape[1], device=level_BK.device)
        modality = torch.where(slots == len(slots) - 1, 2, slots // 2 % 2)
        return F.silu(self.second(F.silu(self.first(features))) + self.modality(modality))


def _only_output(block: Block, *inputs: Any) -> Tensor:
    return block(*inputs)[0]


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


class WorldTransformer(nn.Module):
    """Noisy latents at per-token levels -> prediction (x or v, as trained), and hidden states on request.

    The sequence, its masks and its positions come from the layout; see `worldmodel.layout`.
    """

    def __init__(self, cfg: ModelConfig, layout: Layout) -> None:
        super().__init__()
        self.cfg, self.layout = cfg, layout
        self.text_in = (
            ByteEmbedding(cfg.width) if cfg.text_patch == 1 else ByteEncoder(cfg.width, cfg.text_patch)
        )
        self.speech_kind = nn.Embedding(1, cfg.width) if cfg.speech_bytes else None
        self.action_in = nn.Linear(layout.chunk_frames * layout.action_dim, cfg.width)
        self.video_in = nn.Linear(layout.video_values, cfg.width)
        self.audio_in = nn.Linear(layout.audio_values, cfg.width)
        # With a window of one chunk nothing may be seen of the chunk before.
        has_stem = cfg.causal_stem and cfg.window_chunks > 1
        self.stem = CausalStem(layout.video_values, layout.audio_values, cfg.width) if has_stem else None
        self.kind = nn.Embedding(len(MODALITIES), cfg.width)
        self.absent_action = nn.Embedding(1, cfg.width)
        self.action_level = (
            nn.Linear(layout.chunk_frames * layout.action_dim, cfg.width) if cfg.action_modulation else None
        )
        self.levels = LevelEmbedding(cfg.width)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))
        self.final_modulation = Modulation(cfg.width, 2)
        self.video_out = nn.Linear(cfg.width, layout.video_values)
        self.audio_out = nn.Linear(cfg.width, layout.audio_values)
        self.is_compiled, self.recompute = False, False  # see compile_blocks; whether backward computes again
        self.sequence: SequenceGroup | None = None  # ranks that share each clip's tokens
        self.initialise()

    def compile_blocks(self) -> None:
        """Compiles what a block computes, once for all of them; attention is then FlexAttention's."""
        torch._dynamo.config.recompile_limit = 64  # a graph for each bucket and with and without gradients
        for block in self.blocks:
            assert isinstance(block, Block)
            block.compiled = torch.compile(block.output, dynamic=False, fullgraph=True)
        self.is_compiled = True

    def initialise(self) -> None:
        """All initialisation in one place: Xavier for matrices, zeros for gates and outputs (adaLN-zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
        for out in (self.video_out, self.audio_out, self.action_level):
            if out is not None:
                nn.init.zeros_(out.weight)

    def forward(
        self,
        tokens: Tokens,
        level_BK: Tensor,
        level_of_BL: Tensor,
        *,
        layout: Layout | None = None,
        features: Sequence[int] = (),
        stop_after: int | None = None,
        past: list[KeyValue] | None = None,
        past_angles_JP: Tensor | None = None,
        past_valid_BJ: Tensor | None = None,
        time_offset_s: float = 0.0,
        before: Estimate | None = None,
        keep_cache: bool = False,
    ) -> dict[str, Any]:
        """Returns video [B, chunks, tokens, patch*C] and audio [B, chunks, steps, C] in fp32, a list
        `features` of [B, L, D] after each of the blocks `features` (1-based), and with keep_cache the
        unrotated keys and values of each block.

        stop_after leaves after that block with the features only (the teacher's early exit). `past` are
        cached keys and values whose rotary angles and validity are given beside them; all of them are
        visible. `before` is the chunk before the first one, as `estimate` gives it. With `sequence` all ranks
        of the group are given the same and return the same; there is no cache then.
        """
        layout = self.layout if layout is None else layout
        device = level_BK.device
        x_BLD = self._embed(tokens, layout)
        if self.stem is not None:
            seen = self.estimate(tokens, level_BK, level_of_BL, layout=layout)
            x_BLD = x_BLD + self.stem(seen, before, layout, tokens.group_BL).to(x_BLD.dtype)
        if torch.is_grad_enabled() and not x_BLD.requires_grad and _is_trained(self.blocks):
            # What comes before is frozen (a LoRA). Without a gradient of its input a recomputed block has
            # none of its weights either, and ZeRO-3's hooks run too early.
            x_BLD.requires_grad_()
        level_BKD = self._led(self.levels(level_BK), tokens)
        at = self._at(level_of_BL, level_BK.shape[1], level_BKD.dtype)
        positions = on_device(layout, "positions_L3", device)
        if time_offset_s:
            positions = positions + torch.tensor([time_offset_s, 0.0, 0.0], device=device)
        angles = rotary_angles(positions, self.cfg.head_dim)
        if past_angles_JP is not None:
            angles = torch.cat([past_angles_JP, angles])
        as_blocks = self.is_compiled and past is None and not keep_cache
        visibility = self._visibility(tokens, past_valid_BJ, layout, x_BLD.dtype, as_blocks=as_blocks)
        rotary = Rotary.of(angles, x_BLD.dtype)
        own, own_level_BKD, own_at = layout, level_BKD, at
        shared = None if self.sequence is None else self.sequence.part(layout)
        if shared is not None:
            own, x_BLD = shared.own, shared.of(x_BLD)
            own_level_BKD, own_level_of_BL = shared.levels(level_BKD, level_of_BL)
            own_at = self._at(own_level_of_BL, own_level_BKD.shape[1], level_BKD.dtype)
            visibility = replace(visibility, shared=shared)

        hidden: dict[int, Tensor] = {}
        out: dict[str, Any] = {}
        cache: list[KeyValue] = []
        for number, block in enumerate(self.blocks, start=1):
            own_past = None if past is None else past[number - 1]
            inputs = (x_BLD, own_level_BKD, own_at, own, rotary, visibility)
            if self.recompute and torch.is_grad_enabled():
                # Reentrant: so ZeRO-3's hooks gather a block again before it is computed again.
                x_BLD, new = checkpoint(_only_output, block, *inputs, use_reentrant=True), None
            else:
                x_BLD, new = block(*inputs, own_past)
            if keep_cache:
                assert new is not None, "kept where nothing is compiled"
                cache.append(new)
            if number in features:
                hidden[number] = x_BLD if shared is None else shared.whole(x_BLD)
            if number == stop_after:
                break
        if features:
            out["features"] = [hidden[number] for number in features]
        if stop_after is not None:
            return out
        if keep_cache:
            out["cache"] = cache
        if shared is not None:
            x_BLD = shared.whole(x_BLD)
        shift, scale = self.final_modulation(level_BKD, at, layout)
        _, chunks = split_text(torch.addcmul(shift, normalised(x_BLD), 1 + scale), layout)
        _, video, audio = chunks.split(layout.parts, dim=2)
        out["video"] = self.video_out(video.contiguous()).float()
        out["audio"] = self.audio_out(audio.contiguous()).float()
        return out

    def estimate(self, tokens: Tokens, level_BK: Tensor, level_of_BL: Tensor, *, layout: Layout) -> Estimate:
        """What the tokens of each chunk show of the data, for the chunk after it."""
        _, level = split_text(level_BK.gather(1, level_of_BL)[..., None], layout)
        _, valid = split_text(tokens.valid_BL[..., None], layout)
        _, video_t, audio_t = level.split(layout.parts, 2)
        _, has_video, has_audio = valid.split(layout.parts, 2)
        return Estimate.of(tokens.video_BNVC, video_t, has_video, tokens.audio_BNTC, audio_t, has_audio)

    def encode_text(self, text_BN: Tensor, valid_BL: Tensor) -> list[KeyValue]:
        """Unrotated keys and values of the text in every block: it sees only itself, so a rollout needs them
        once."""
        layout = self.layout.of(num_chunks=0, text=True)
        x_BLD = self._embed_text(text_BN, layout, self.kind.weight[TEXT])
        level_BKD = self.levels(torch.zeros(len(text_BN), 1, device=text_BN.device))
        at = LevelOfTokens(torch.ones(*x_BLD.shape[:2], 1, dtype=x_BLD.dtype, device=text_BN.device))
        angles = rotary_angles(layout.positions_L3.to(text_BN.device), self.cfg.head_dim)
        all_LL = torch.ones(layout.length, layout.length, dtype=torch.bool)
        visibility = Visibility.by_bias(all_LL, valid_BL, x_BLD.dtype)
        rotary = Rotary.of(angles, x_BLD.dtype)
        cache = []
        for block in self.blocks:
            x_BLD, new = block(x_BLD, level_BKD, at, layout, rotary, visibility)
            assert new is not None, "nothing is compiled for a bias"
            cache.append(new)
        return cache

    def _at(self, level_of_BL: Tensor, num_levels: int, dtype: torch.dtype) -> LevelOfTokens:
        if self.is_compiled:
            return LevelOfTokens(index_BL=level_of_BL)
        return LevelOfTokens(F.one_hot(level_of_BL, num_levels).to(dtype))

    def _visibility(
        self,
        tokens: Tokens,
        past_valid_BJ: Tensor | None,
        layout: Layout,
        dtype: torch.dtype,
        *,
        as_blocks: bool,
    ) -> Visibility:
        window, sinks, valid_BL = self.cfg.window_chunks, self.cfg.sink_chunks, tokens.valid_BL
        if as_blocks:
            return Visibility.by_blocks(
                layout, valid_BL, window_chunks=window, sink_chunks=sinks, group_BL=tokens.group_BL
            )
        structure = window_structure(layout, window, sinks, valid_BL.device)
        if past_valid_BJ is not None:
            seen = structure.new_ones(structure.shape[0], past_valid_BJ.shape[1])
            structure, valid_BL = torch.cat([seen, structure], 1), torch.cat([past_valid_BJ, valid_BL], 1)
        return Visibility.by_bias(structure, valid_BL, dtype, group_BL=tokens.group_BL)

    def _embed(self, tokens: Tokens, layout: Layout) -> Tensor:
        """Every modality's path runs every time, present or not: ZeRO-3's collectives must match on all
        ranks."""
        dtype = self.video_in.weight.dtype
        kind = self.kind(torch.arange(len(MODALITIES), device=tokens.valid_BL.device))
        action = torch.where(
            tokens.actions_valid_BN[..., None],
            self.action_in(tokens.actions_BNA.to(dtype)),
            self.absent_action(torch.zeros(1, dtype=torch.long, device=kind.device)),
        )
        chunks = torch.cat(
            [
                (action + kind[ACTION])[:, :, None],
                self.video_in(tokens.video_BNVC.to(dtype)) + kind[VIDEO],
                self.audio_in(tokens.audio_BNTC.to(dtype)) + kind[AUDIO],
            ],
            dim=2,
        )
        if tokens.text_BN is None or not layout.text_tokens:
            return join_text(None, chunks)
        return join_text(self._embed_text(tokens.text_BN, layout, kind[TEXT]), chunks)

    def _embed_text(self, text_BN: Tensor, layout: Layout, kind_D: Tensor) -> Tensor:
        """Caption and transcript are encoded apart: no word of one runs into the other."""
        if self.speech_kind is None:
            return self.text_in(text_BN) + kind_D
        caption, speech = text_BN.tensor_split([layout.caption_bytes], dim=1)
        said = self.text_in(speech) + self.speech_kind.weight[0]
        return torch.cat([self.text_in(caption), said], dim=1) + kind_D

    def _led(self, level_BKD: Tensor, tokens: Tokens) -> Tensor:
        """Levels with the actions of their chunk; an unknown action adds nothing."""
        if self.action_level is None:
            return level_BKD
        known_BNA = tokens.actions_BNA * tokens.actions_valid_BN[..., None]
        led_BND = self.action_level(known_BNA.to(level_BKD.dtype)) * tokens.actions_valid_BN[..., None]
        # The levels of a chunk: t and s of picture and of sound. The last two are of all chunks.
        return level_BKD + F.pad(led_BND.repeat_interleave(4, dim=1), (0, 0, 0, 2))
