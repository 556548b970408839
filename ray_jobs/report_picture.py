"""continued.png: one clip as a picture to share: models above truth, each with its sound beneath."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from avtok.decode import DecodedClip, decode_clip, probe
from ray_jobs.report_figures import filmstrip_png, sound_png
from ray_jobs.rollout_rows import shown

COLUMNS = 16
WIDTH_PX, MARGIN_PX, GAP_PX, LABEL_PX = 1536, 24, 8, 26
INK, PAPER, GENERATED = (32, 33, 36), (255, 255, 255), (47, 111, 222)


def write_picture(rollouts: Path, out: Path, *, row: int = 0) -> Path | None:
    """Draws one row of rollouts.json; None when it has no picture. ClipError when a file cannot be read."""
    chosen = json.loads((rollouts / "rollouts.json").read_text("utf-8"))[row]
    bands = [_band(title, rollouts / file) for _, title, file in shown(chosen)]
    if not all(bands):
        return None
    strips = [strip for band in bands for strip in band]
    height = MARGIN_PX * 2 + sum(strip.height + GAP_PX for strip in strips)
    page = Image.new("RGB", (WIDTH_PX + 2 * MARGIN_PX, height), PAPER)
    top = MARGIN_PX
    for strip in strips:
        page.paste(strip, (MARGIN_PX, top))
        top += strip.height + GAP_PX
    total_s = chosen["prefix_s"] + chosen["seconds"]
    x = MARGIN_PX + round(WIDTH_PX * chosen["prefix_s"] / total_s)
    ImageDraw.Draw(page).line([(x, MARGIN_PX), (x, height - MARGIN_PX)], fill=GENERATED, width=3)
    page.save(out, optimize=True)
    return out


def _band(title: str, path: Path) -> list[Image.Image]:
    """Label, frames and sound of one clip; [] without a picture."""
    clip = _whole(path)
    if clip.video_THWC is None:
        return []
    label = Image.new("RGB", (WIDTH_PX, LABEL_PX), PAPER)
    font = ImageFont.load_default(size=20)
    ImageDraw.Draw(label).text((0, 0), title, fill=INK, font=font)
    strips = [label, _from_address(filmstrip_png(clip.video_THWC, columns=COLUMNS), WIDTH_PX // COLUMNS)]
    if clip.audio_N is not None:
        strips.append(_from_address(sound_png(clip.audio_N, sample_rate=16000), 72))
    return strips


def _whole(path: Path) -> DecodedClip:
    info = probe(str(path))
    size = (info.height or 64, info.width or 64)
    return decode_clip(
        str(path), start_s=0.0, end_s=info.duration_s, fps=round(info.fps) or 16, size=size, sample_rate=16000
    )


def _from_address(address: str, height_px: int) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    return picture.resize((WIDTH_PX, height_px), Image.Resampling.NEAREST)
