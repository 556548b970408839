"""Continues clips chunk by chunk over a key-value cache of window and sink."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from worldmodel.chunk import Chunk
from worldmodel.flow import add_noise, predicted_velocity
from worldmodel.guidance import Guidance
from worldmodel.layout import ACTION, AUDIO, LEARNED, VIDEO
from worldmodel.model.attention import KeyValue
from worldmodel.model.rope import rotary_angles
from worldmodel.model.stem import Estimate
from worldmodel.model.transformer import Tokens, WorldTransformer
from worldmodel.randomness import keyed_generator

# B sessions, N chunks (1 here), V video and T audio tokens of a chunk, J cached tokens, K levels, P rotary
# pairs.


@dataclass
class CachedChunk:
    keys_values: list[KeyValue]  # unrotated, one pair a block
    valid_BJ: Tensor

    def keep(self, rows_R: Tensor) -> CachedChunk:
        return CachedChunk([(k[rows_R], v[rows_R]) for k, v in self.keys_values], self.valid_BJ[rows_R])


class WindowCache:
    """Text, the first `sink_chunks` chunks and the last ones, never more than the trained window.

    Positions are re-based each time: sinks sit in slots 0.., the window behind them, the current chunk last,
    so that no distance ever leaves the trained range however long a rollout runs.
    """

    def __init__(self, *, window_chunks: int, sink_chunks: int) -> None:
        self.window_chunks, self.sink_chunks = window_chunks, sink_chunks
        self.text: CachedChunk | None = None
        self.sinks: list[CachedChunk] = []
        self.window: list[CachedChunk] = []
        self.before: Estimate | None = None  # the last chunk, as the next one's stem sees it
        self.num_chunks = 0

    def visible(self) -> list[CachedChunk]:
        """Chunks that the next one may see, oldest first."""
        recent = self.window[-(self.window_chunks - 1) :] if self.window_chunks > 1 else []
        return self.sinks + recent

    def add(self, chunk: CachedChunk) -> None:
        if len(self.sinks) < self.sink_chunks:
            self.sinks.append(chunk)
        else:
            self.window.append(chunk)
            del self.window[: -max(1, self.window_chunks)]
        self.num_chunks += 1

    def flush(self) -> None:
        """Keeps the sinks and the last chunk only: instant control after a change of scene or action."""
        del self.window[:-1]

    def keep(self, rows_R: Tensor) -> None:
        """Forgets all rows but these, which may be of any order."""
        self.text = None if self.text is None else self.text.keep(rows_R)
        self.sinks = [chunk.keep(rows_R) for chunk in self.sinks]
        self.window = [chunk.keep(rows_R) for chunk in self.window]
        if self.before is not None:
            self.before = Estimate(self.before.video_BNVC[rows_R], self.before.audio_BNTC[rows_R])


class Sampler:
    """One batch of sessions. Noise is keyed by (session seed, chunk, step, modality), never by batch slot."""

    def __init__(
        self,
        model: WorldTransformer,
        *,
        prediction: str,
        steps: int,
        context_noise: float,
        text_BN: Tensor,
        seeds: list[int],
        sound_lag: int = 0,
        guidance: Guidance | None = None,
        caption_chunks: int | None = None,
        made: Collection[str] = LEARNED,
    ) -> None:
        """sound_lag: ODE steps by which sound follows the picture, so that it is made from what is seen.
        guidance: how far each condition is followed; anything but 1 costs one more row a session.
        caption_chunks: after so many chunks, of the prefix, too, the caption is no longer exaggerated; None
        is never. A caption that is to be followed less than as trained is so throughout.
        made: modalities that there are; of others latents are zeros that nobody sees."""
        self.model, self.prediction, self.steps, self.context_noise = model, prediction, steps, context_noise
        self.sound_lag, self.guidance = sound_lag, guidance or Guidance()
        self.caption_chunks, self.made = caption_chunks, made
        self.layout = model.layout.of(num_chunks=1, text=False)
        self.seeds, self.device = seeds, text_BN.device
        self.cache = WindowCache(window_chunks=model.cfg.window_chunks, sink_chunks=model.cfg.sink_chunks)
        self._write_text(text_BN)

    @torch.no_grad()
    def append(self, chunk: Chunk) -> None:
        """Takes a real (or finished) chunk into the history, at the context noise."""
        index = self.cache.num_chunks
        t = torch.tensor(self.context_noise, device=self.device)
        noisy = {
            "video": add_noise(chunk.video_BVC, self._noise("context.video", index, 0, chunk.video_BVC), t),
            "audio": add_noise(chunk.audio_BTC, self._noise("context.audio", index, 0, chunk.audio_BTC), t),
        }
        out, tokens = self._forward(chunk, noisy, (t, t), keep_cache=True)
        self.cache.add(CachedChunk(out["cache"], tokens.valid_BL))
        level_BK, level_of_BL = self._levels((t, t))
        self.cache.before = self.model.estimate(tokens, level_BK, level_of_BL, layout=self.layout)
        if self.cache.num_chunks == self.caption_chunks and self.guidance.caption > 1:
            self._end_caption_guidance()

    @torch.no_grad()
    def generate(
        self, actions_BA: Tensor, actions_valid_B: Tensor, given: dict[str, Tensor] | None = None
    ) -> Chunk:
        """Denoises the next chunk from noise by Euler steps and takes it into the history.

        given: tokens of one modality, "video" or "audio", that the other is made for.
        """
        given = given or {}
        index, num = self.cache.num_chunks, len(self.seeds)
        layout = self.layout
        like = {
            "video": torch.empty(num, layout.video_tokens, layout.video_values),
            "audio": torch.empty(num, layout.audio_tokens, layout.audio_values),
        }
        there = {m: torch.full((num,), m in self.made, device=self.device) for m in LEARNED}
        absent = {m: torch.zeros_like(like[m], device=self.device) for m in LEARNED if m not in self.made}
        fixed = given | absent
        x = {m: self._noise(m, index, 0, shape) for m, shape in like.items()} | fixed
        chunk = Chunk(x["video"], x["audio"], there["video"], there["audio"], actions_BA, actions_valid_B)
        for now, following in pairwise(self._schedule(fixed)):
            out, _ = self._forward(chunk, x, (now[0], now[1]))
            for index_of, modality in enumerate(x):
                if modality in fixed:
                    continue
                t, after = now[index_of], following[index_of]
                guided = self.guidance.combine(out[modality][:, 0])
                v = predicted_velocity(guided, x[modality], t, self.prediction)
                x[modality] = x[modality] + (after - t) * v
        chunk = replace(chunk, video_BVC=x["video"], audio_BTC=x["audio"])
        self.append(chunk)
        return chunk

    def keep(self, sessions: list[int]) -> None:
        """Goes on with these sessions only, which thereby get the numbers 0, 1, ..."""
        self._keep_rows(range(self.guidance.num_variants), sessions)
        self.seeds = [self.seeds[session] for session in sessions]

    def _end_caption_guidance(self) -> None:
        """What the caption asked for is in the history by now; exaggerating it further would bend motion."""
        without = [None, *self.guidance.without]
        kept = [variant for variant, name in enumerate(without) if name != "caption"]
        self._keep_rows(kept, range(len(self.seeds)))
        self.guidance = replace(self.guidance, caption=1.0)

    def _keep_rows(self, variants: Iterable[int], sessions: Iterable[int]) -> None:
        rows_VB = len(self.seeds) * torch.tensor([*variants])[:, None] + torch.tensor([*sessions])
        self.cache.keep(rows_VB.flatten().to(self.device))

    @property
    def num_rows(self) -> int:
        return len(self.seeds) * self.guidance.num_variants

    def _schedule(self, given: Collection[str] = ()) -> Tensor:
        """Levels [steps + lag + 1, 2] of picture and sound, both from 1 to 0 in equal steps; what is given is
        clean throughout."""
        falling = torch.linspace(1, 0, self.steps + 1, device=self.device)
        if given:
            levels = {m: torch.zeros_like(falling) if m in given else falling for m in LEARNED}
            return torch.stack(list(levels.values()), dim=1)
        picture = torch.cat([falling, falling.new_zeros(self.sound_lag)])
        sound = torch.cat([falling.new_ones(self.sound_lag), falling])
        return torch.stack([picture, sound], dim=1)

    def _forward(
        self,
        chunk: Chunk,
        noisy: dict[str, Tensor],
        t: tuple[Tensor, Tensor],
        *,
        keep_cache: bool = False,
    ) -> tuple[dict, Tokens]:
        """t of picture and of sound. What comes back has a row for each session and variant of conditions."""
        chunk, noisy = self.guidance.chunk(chunk), {m: self.guidance.rows(x) for m, x in noisy.items()}
        layout, num = self.layout, self.num_rows
        valid_BL = torch.ones(num, layout.length, dtype=torch.bool, device=self.device)
        kind = layout.modality_L.to(self.device)
        valid_BL[:, kind == VIDEO] = chunk.has_video_B[:, None]
        valid_BL[:, kind == AUDIO] = chunk.has_audio_B[:, None]
        valid_BL[:, kind == ACTION] = True
        tokens = Tokens(
            noisy["video"][:, None],
            noisy["audio"][:, None],
            None,
            chunk.actions_BA[:, None],
            chunk.actions_valid_B[:, None],
            valid_BL,
        )
        level_BK, level_of_BL = self._levels(t)
        past, angles, past_valid, slot = self._past()
        out = self.model(
            tokens,
            level_BK,
            level_of_BL,
            layout=layout,
            past=past,
            past_angles_JP=angles,
            past_valid_BJ=past_valid,
            time_offset_s=slot * layout.chunk_s,
            before=self.cache.before,
            keep_cache=keep_cache,
        )
        return out, tokens

    def _levels(self, t: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The table of noise levels: picture, picture, sound, sound, no first frame apart, and clean text and
        actions."""
        num, layout, clean = self.num_rows, self.layout, torch.zeros_like(t[0])
        level_BK = torch.stack([t[0], t[0], t[1], t[1], clean, clean]).expand(num, -1)
        return level_BK, layout.level_slot_L.to(self.device).expand(num, -1)

    def _past(self) -> tuple[list[KeyValue], Tensor, Tensor, int]:
        """Cached keys and values of each block, their re-based angles, their validity, and the current
        chunk's slot."""
        chunks = self.cache.visible()
        text_layout = self.model.layout.of(num_chunks=0, text=True)
        positions = [text_layout.positions_L3]
        for slot in range(len(chunks)):
            shifted = self.layout.positions_L3.clone()
            shifted[:, 0] += slot * self.layout.chunk_s
            positions.append(shifted)
        parts = [self.cache.text, *chunks]
        past = [
            (
                torch.cat([p.keys_values[b][0] for p in parts], 2),
                torch.cat([p.keys_values[b][1] for p in parts], 2),
            )
            for b in range(self.model.cfg.depth)
        ]
        angles = rotary_angles(torch.cat(positions).to(self.device), self.model.cfg.head_dim)
        return past, angles, torch.cat([p.valid_BJ for p in parts], 1), len(chunks)

    @torch.no_grad()
    def _write_text(self, text_BN: Tensor) -> None:
        """Text sees only text, so its keys and values are computed once."""
        text_BN = self.guidance.text(text_BN, self.model.layout.caption_bytes)
        valid_BL = self.model.layout.text_valid(text_BN)
        self.cache.text = CachedChunk(self.model.encode_text(text_BN, valid_BL), valid_BL)

    def _noise(self, name: str, chunk: int, step: int, like: Tensor) -> Tensor:
        rows = [
            torch.from_numpy(
                keyed_generator(seed, chunk, step, name).standard_normal(like.shape[1:], dtype="float32")
            )
            for seed in self.seeds
        ]
        return torch.stack(rows).to(self.device)
