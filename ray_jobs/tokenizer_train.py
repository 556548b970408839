"""Codecs from embedded worlds and real clips, cut and sized as training would see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from avtok.decode import ClipError, DecodedClip, decode_clip
from ray_jobs.codec_recipe import SPEECH, CodecRecipe
from ray_jobs.errors import UserError
from ray_jobs.index import index_sources
from worldmodel.worlds.bounce import simulate
from worldmodel.worlds.settings import WORLDS, world_settings

WORLD_CLIP_S = 4.0
LONGEST_S = 10.0  # of one file, so that a long film does not decide the codec
RATE_HZ = 16000
QUIETEST = 0.01  # of full scale: a file that is never louder teaches a sound codec nothing
Say = Callable[[str, dict[str, Any]], None]


def train_codec(
    recipe: CodecRecipe, sources: list[str], *, out: Path, say: Say = lambda stage, info: None
) -> dict[str, Any]:
    """Trains and saves the codec folder from the recipe's sources and `sources`; returns what it was made of.

    UserError when nothing can be decoded, or a source does not fit.
    """
    everything = [*recipe.sources, *sources]
    if not everything:
        raise UserError("no sources; name embedded worlds, folders or manifests of clips")
    out.mkdir(parents=True, exist_ok=True)
    used: list[str] = []
    try:
        if recipe.kind == "sound":
            codec = _train_sound(recipe, everything, out, used, say)
        else:
            codec = _train_picture(recipe, everything, out, used, say)
    except ValueError as error:
        raise UserError(f"{', '.join(everything)}: {error}") from None
    codec.save(out)
    return {"codec": str(out), "kind": recipe.kind, "sources": len(used), "channels": codec.spec.channels}


def _train_picture(recipe: CodecRecipe, sources: list[str], out: Path, used: list[str], say: Say) -> Any:
    from avtok.train import fit_video_codec

    groups = [_world_pictures(recipe, sources, used), _real_pictures(recipe, sources, out, used)]
    names, groups = tuple(used), [group for group in groups if group]
    say("codec", {"done": 0, "total": recipe.steps})
    if recipe.kind == "pca":
        clips = [clip for group in groups for clip in group]
        return fit_video_codec(
            clips,
            components=recipe.channels,
            fps=recipe.fps,
            name=recipe.name or out.name,
            trained_on=names,
        )
    if not groups:
        raise ValueError("no picture could be decoded")
    from avtok.picture_net import PictureNetConfig
    from avtok.train_picture import PictureRecipe, train_picture_codec

    settings = PictureRecipe(
        steps=recipe.steps,
        batch=recipe.batch,
        lr=recipe.lr,
        noise=recipe.noise,
        piece_px=min(recipe.sizes_px),
        seed=recipe.seed,
        net=PictureNetConfig(channels=recipe.channels),
    )
    with _threads(recipe.threads):
        return train_picture_codec(
            groups,
            settings,
            name=recipe.name or out.name,
            fps=recipe.fps,
            trained_on=names,
            on_step=_teller(recipe, say),
        )


def _train_sound(recipe: CodecRecipe, sources: list[str], out: Path, used: list[str], say: Say) -> Any:
    from avtok.sound_net import SoundNetConfig
    from avtok.train_sound import SoundRecipe, train_sound_codec

    found = zip(
        (
            _speech(recipe, used) if SPEECH in sources else [],
            _real_sounds(recipe, sources, out, used),
            _world_sounds(recipe, sources, used),
        ),
        recipe.shares,
        strict=True,
    )
    chosen = [(group, share) for group, share in found if group and share > 0]
    if not chosen:
        raise ValueError("no sound could be decoded")
    settings = SoundRecipe(
        steps=recipe.steps,
        batch=recipe.batch,
        lr=recipe.lr,
        noise=recipe.noise,
        seed=recipe.seed,
        shares=tuple(share for _, share in chosen),
        net=SoundNetConfig(channels=recipe.channels),
    )
    with _threads(recipe.threads):
        return train_sound_codec(
            [group for group, _ in chosen],
            settings,
            name=recipe.name or out.name,
            trained_on=used,
            on_step=_teller(recipe, say),
        )


def _teller(recipe: CodecRecipe, say: Say) -> Callable[[int, dict[str, float]], None]:
    return lambda step, row: say(
        "codec",
        {
            "done": step + 1,
            "total": recipe.steps,
            "note": "  ".join(f"{name} {value:.3f}" for name, value in row.items()),
        },
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch's threads for the time of a `with`: the sums of a training run depend on them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _world_pictures(recipe: CodecRecipe, sources: list[str], used: list[str]) -> list[np.ndarray]:
    return [
        simulate(world_settings(world), seed=seed, duration_s=WORLD_CLIP_S).video_THWC
        for world, seed in _world_seeds(recipe, sources, used)
    ]


def _world_sounds(recipe: CodecRecipe, sources: list[str], used: list[str]) -> list[np.ndarray]:
    return [
        simulate(world_settings(world), seed=seed, duration_s=WORLD_CLIP_S).audio_N
        for world, seed in _world_seeds(recipe, sources, used)
    ]


def _world_seeds(recipe: CodecRecipe, sources: list[str], used: list[str]) -> list[tuple[str, int]]:
    seeds = [
        (world, recipe.seed + number)
        for world in sources
        if world in WORLDS
        for number in range(recipe.world_clips)
    ]
    used += [_range(world, recipe.seed, recipe.world_clips) for world in sources if world in WORLDS]
    return seeds


def _speech(recipe: CodecRecipe, used: list[str]) -> list[np.ndarray]:
    import torch
    from torchaudio.functional import resample

    from worldmodel.worlds.speech import grid_utterance

    sentences = [grid_utterance(seed=recipe.seed + number) for number in range(recipe.sentences)]
    used.append(_range(SPEECH, recipe.seed, recipe.sentences))
    return [
        resample(torch.from_numpy(one.audio_N), one.sample_rate, RATE_HZ).clamp(-1, 1).numpy()
        for one in sentences
    ]


def _range(source: str, first_seed: int, count: int) -> str:
    return f"{source}:{first_seed}-{first_seed + count - 1}"


def _real_pictures(recipe: CodecRecipe, sources: list[str], out: Path, used: list[str]) -> list[np.ndarray]:
    found = []
    for row in _real_rows(recipe, sources, out):
        if not row["has_video"]:
            continue
        clips = [_cut(row, recipe.fps, size_px) for size_px in recipe.sizes_px]
        pictures = [clip.video_THWC for clip in clips if clip is not None and clip.video_THWC is not None]
        used += [_name(row["uri"], sources)] if pictures else []
        found += pictures
    return found


def _real_sounds(recipe: CodecRecipe, sources: list[str], out: Path, used: list[str]) -> list[np.ndarray]:
    found = []
    for row in _real_rows(recipe, sources, out):
        clip = _cut(row, recipe.fps, 64) if row["has_sound"] else None
        if clip is None or clip.audio_N is None or np.abs(clip.audio_N).max(initial=0) < QUIETEST:
            continue
        used.append(_name(row["uri"], sources))
        found.append(clip.audio_N)
    return found


def _real_rows(recipe: CodecRecipe, sources: list[str], out: Path) -> list[dict[str, Any]]:
    files = [source for source in sources if source not in WORLDS and source != SPEECH]
    if not files:
        return []
    index_sources(files, out=str(out / "sources.parquet"))
    rows = pq.read_table(out / "sources.parquet").to_pylist()
    return [
        row
        for row in rows
        if not any(fnmatch(Path(row["uri"]).name, pattern) for pattern in recipe.leave_out)
    ]


def _name(uri: str, sources: list[str]) -> str:
    """folder/file of a clip below a source: where the folder lies is nobody's business."""
    for source in sources:
        if source not in WORLDS and Path(uri).is_relative_to(Path(source).resolve()):
            return str(Path(uri).relative_to(Path(source).resolve().parent))
    return Path(uri).name


def _cut(row: dict[str, Any], fps: int, size_px: int) -> DecodedClip | None:
    """The first seconds in whole groups of four frames; None where less is left or nothing decodes."""
    frames = 4 * int(min(LONGEST_S, row["duration_s"]) * fps // 4)
    if not frames:
        return None
    start_s = row["start_s"] or 0.0
    try:
        return decode_clip(
            row["uri"],
            start_s=start_s,
            end_s=start_s + frames / fps,
            fps=fps,
            size=(size_px, size_px),
            sample_rate=RATE_HZ,
        )
    except ClipError:
        return None  # the index has let it through, its media have not: one clip fewer
