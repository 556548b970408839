"""Measure a pretrained autoencoder's geometry by probing it, and write codec.json beside its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from avtok.pretrained import (
    Autoencoder,
    NotACodec,
    decode_steps,
    encode_sound_steps,
    encode_steps,
    load_autoencoder,
)
from avtok.spec import CodecSpec

# C channels, T frames or steps, H W pixels or latents, N samples, S latent steps.

MOST_FRAMES = 48  # a video codec whose third step comes later than this is not understood
PROBE_STEPS = 10  # what reaches further than this is measured as this
FAINT = 1e-5  # of the largest change: below this a probe did not arrive
PROBED_SAMPLES = 48_000


@torch.inference_mode()
def measure(
    folder: str | Path,
    *,
    fps: int,
    size: tuple[int, int],
    pictures: Sequence[np.ndarray],
    sounds: Callable[[int], Sequence[np.ndarray]],
    name: str = "",
) -> CodecSpec:
    """Writes folder/codec.json and returns the geometry. NotACodec when it cannot be understood.

    fps and size are those of the clips it is for. pictures: uint8 clips of that size; sounds(rate_hz):
    float32 mono clips at the model's own rate. From them come mean and scale of the latents.
    """
    autoencoder = load_autoencoder(folder)
    name = name or Path(folder).name
    if autoencoder.modality == "video":
        spec, lead = _video_geometry(autoencoder, fps, size, name)
        latents_SC = torch.cat([_picture_latents(autoencoder, clip, spec, lead) for clip in pictures])
    else:
        lead, spec = 0, _audio_geometry(autoencoder, name)
        latents_SC = torch.cat(
            [_sound_latents(autoencoder, clip, spec) for clip in sounds(autoencoder.rate_hz)]
        )
    mean_C = latents_SC.mean(0)
    scale = float((latents_SC - mean_C).square().mean().sqrt())
    if not np.isfinite(scale) or scale <= 0:
        raise NotACodec(f"{folder}: its latents of {len(latents_SC)} probes have scale {scale}")
    spec = replace(spec, scale=scale, content_hash=_hash_of_weights(Path(folder)))
    record = {"kind": "pretrained", **spec.to_dict(), "mean": mean_C.tolist(), "lead": lead}
    (Path(folder) / "codec.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return spec


def _video_geometry(
    autoencoder: Autoencoder, fps: int, size: tuple[int, int], name: str
) -> tuple[CodecSpec, int]:
    first, stride = _frame_strides(autoencoder, size)
    lead = 0 if first == stride else first
    frames = PROBE_STEPS * stride
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, frames, *size, generator=generator) * 2 - 1
    latents = encode_steps(autoencoder, pixels, lead)
    _, channels, steps, height, width = latents.shape
    if steps != PROBE_STEPS or size[0] % height or size[1] % width:
        raise NotACodec(
            f"{name}: {frames} frames of {size[0]}x{size[1]} became latents {list(latents.shape)}"
        )
    back, ahead = _reach_of_encoder(
        lambda x: encode_steps(autoencoder, x, lead), pixels, latents, stride, PROBE_STEPS
    )
    spec = CodecSpec(
        name=name,
        modality="video",
        rate_hz=fps,
        stride_units=stride,
        channels=channels,
        spatial_stride=(size[0] // height, size[1] // width),
        left_context_units=back,
        look_ahead_units=ahead,
        latency_units=_latency(lambda z: decode_steps(autoencoder, z, lead), latents, stride),
    )
    return spec, lead


def _frame_strides(autoencoder: Autoencoder, size: tuple[int, int]) -> tuple[int, int]:
    """Frames of the first latent step, and of every later one, as the decoder gives them back: encoders take
    numbers of frames that do not fit, and round."""
    for frames in range(1, MOST_FRAMES + 1):
        try:
            latents = autoencoder.encode(torch.zeros(1, 3, frames, *size))
        except (RuntimeError, ValueError):  # some take only numbers of frames that fit
            continue
        if latents.shape[2] >= 3:
            break
    else:
        raise NotACodec(f"{MOST_FRAMES} frames of {size[0]}x{size[1]} gave fewer than three latent steps")
    one, two, three = (autoencoder.decode(latents[:, :, :steps]).shape[2] for steps in (1, 2, 3))
    if two - one != three - two or not 0 < one <= two - one:
        raise NotACodec(f"one, two and three latent steps become {one}, {two} and {three} frames")
    return one, two - one


def _audio_geometry(autoencoder: Autoencoder, name: str) -> CodecSpec:
    counts = [
        autoencoder.encode(torch.zeros(1, autoencoder.channels_in, n)).shape[-1]
        for n in (PROBED_SAMPLES, 2 * PROBED_SAMPLES)
    ]
    if counts[1] <= counts[0]:
        raise NotACodec(f"{name}: {PROBED_SAMPLES} and twice as many samples became {counts} steps")
    hop = round(PROBED_SAMPLES / (counts[1] - counts[0]))
    steps = max(PROBE_STEPS, min(64, PROBED_SAMPLES // hop))
    samples_N = torch.rand(steps * hop, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode_sound_steps(autoencoder, samples_N, hop)
    if latents.shape[-1] != steps:
        raise NotACodec(f"{name}: {steps} times {hop} samples became {latents.shape[-1]} steps")
    back, ahead = _reach_of_encoder(
        lambda x: encode_sound_steps(autoencoder, x, hop), samples_N, latents, hop, steps
    )
    return CodecSpec(
        name=name,
        modality="audio",
        rate_hz=autoencoder.rate_hz,
        stride_units=hop,
        channels=latents.shape[1],
        left_context_units=back,
        look_ahead_units=ahead,
        latency_units=_latency(autoencoder.decode, latents, hop),
    )


def _reach_of_encoder(
    encode: Callable[[Tensor], Tensor], media: Tensor, latents: Tensor, stride: int, steps: int
) -> tuple[int, int]:
    """Units before a step, and after it, that its latent depends on: each step's media is changed in turn."""
    axis = 2 if media.ndim == 5 else 0
    moved_SS = torch.zeros(steps, steps)  # [changed step, latent step]
    for step in range(steps):
        changed = media.clone()
        changed.narrow(axis, step * stride, stride).neg_()
        moved_SS[step] = _per_step((encode(changed) - latents).abs())
    moved_SS[:, : steps // 2] = 0.0  # at the start of a clip, padding mirrors what follows
    changed, reached = (moved_SS > FAINT * moved_SS.max()).nonzero().T
    return int((reached - changed).max().clamp_min(0)) * stride, int(
        (changed - reached).max().clamp_min(0)
    ) * stride


def _latency(decode: Callable[[Tensor], Tensor], latents: Tensor, stride: int) -> int:
    """Units before its own span that a latent step changes: so much later can they be given out."""
    step = latents.shape[2] // 2
    changed = latents.clone()
    changed[:, :, step] += latents.std()
    moved_T = _per_step((decode(changed) - decode(latents)).abs())
    arrives = (moved_T > FAINT * moved_T.max()).nonzero()
    return max(0, step * stride - int(arrives.min())) if len(arrives) else 0


def _per_step(change: Tensor) -> Tensor:
    """[1, C, T, ...] -> the largest change at each T."""
    return reduce(change, "b c t ... -> t", "max")


def _picture_latents(autoencoder: Autoencoder, clip: np.ndarray, spec: CodecSpec, lead: int) -> Tensor:
    frames = len(clip) // spec.stride_units * spec.stride_units
    pixels = rearrange(torch.from_numpy(clip[:frames].copy()).float() / 127.5 - 1, "t h w c -> 1 c t h w")
    return rearrange(encode_steps(autoencoder, pixels, lead)[0].float(), "c t h w -> (t h w) c")


def _sound_latents(autoencoder: Autoencoder, clip: np.ndarray, spec: CodecSpec) -> Tensor:
    latents = encode_sound_steps(autoencoder, torch.from_numpy(clip), spec.stride_units)
    return rearrange(latents[0].float(), "c t -> t c")


def _hash_of_weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
