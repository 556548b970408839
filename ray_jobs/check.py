"""Rollouts on disk -> checks.json. The measuring is worldmodel.checks'; this file only reads and pairs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from avtok.decode import ClipError, DecodedClip, decode_clip, probe
from ray_jobs.errors import UserError
from worldmodel.checks.result import CheckClip, Scene, scene_of
from worldmodel.checks.suite import run_checks
from worldmodel.worlds.truth import Truth, read_truth

DEFAULT_FPS, DEFAULT_RATE = 16.0, 16000


def check_rollouts(
    rollouts_dir: str | Path, *, truth: str | None = None, out: str | Path, seed: int = 0
) -> dict[str, Any]:
    """Run all checks over rollouts.json of a folder and write the result to `out`.

    Rows: {sample_id, caption, truth: file, rollout: file, prefix_s}, and for exact truth {source, start_s}:
    the file that was continued and where its cut began. `truth` is the Parquet file that `worldmodel render`
    wrote; without it only what needs none is checked. A file that cannot be decoded is listed as "unusable".
    """
    folder = Path(rollouts_dir)
    rows = _read_rows(folder)
    prefixes = sorted({float(row["prefix_s"]) for row in rows})
    if len(prefixes) > 1:
        raise UserError(
            f"{folder}/rollouts.json: prefixes of {prefixes} s; check rollouts of one prefix at a time"
        )
    truths_by_clip = {} if truth is None else {Path(row.clip).stem: row for row in _read_truth(truth)}

    rollouts: list[CheckClip] = []
    truths: list[CheckClip] = []
    checked: list[int | None] = []
    unusable: list[dict[str, Any]] = []
    fps, sample_rate = 0.0, 0
    for row in rows:
        try:
            info = probe(str(folder / row["truth"]))
            fps, sample_rate = fps or info.fps, sample_rate or info.sample_rate
            real, generated = (
                _decode(folder / row[key], info.height, info.width, fps, sample_rate)
                for key in ("truth", "rollout")
            )
        except ClipError as error:  # our own files, but a disk may have failed since
            unusable.append({"sample_id": row.get("sample_id"), "reason": str(error)})
            continue
        exact = truths_by_clip.get(Path(row.get("source", "")).stem)
        scene = _scene(exact, float(row.get("start_s", 0.0)), fps) if exact else None
        rollouts.append(CheckClip(generated.video_THWC, generated.audio_N))
        truths.append(CheckClip(real.video_THWC, real.audio_N, scene))
        checked.append(row.get("sample_id"))
    if not rollouts:
        raise UserError(
            f"{folder}: none of {len(rows)} rollouts could be decoded; first: {unusable[0]['reason']}"
        )
    if truth is not None and all(clip.scene is None for clip in truths):
        raise UserError(
            f"{truth}: holds no clip that {folder} continues; give the truth.parquet of the clips that "
            "were rolled out, and rollouts.json rows with `source`"
        )
    result = run_checks(
        rollouts,
        truths,
        prefix_s=prefixes[0],
        fps=fps or DEFAULT_FPS,  # of clips that all lack picture or sound: no check will use it
        sample_rate=sample_rate or DEFAULT_RATE,
        seed=seed,
    )
    result |= {"sample_ids": checked, "unusable": unusable}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(result, indent=1, allow_nan=False), "utf-8")
    return result


def _read_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rollouts.json"
    try:
        rows = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; give a folder that `worldmodel rollout` wrote") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}; roll out again") from None
    if not rows:
        raise UserError(f"{path}: lists no rollout; roll out at least one clip")
    return rows


def _read_truth(path: str) -> list[Truth]:
    try:
        return read_truth(path)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"--truth {path}: {error}") from None


def _decode(path: Path, height: int, width: int, fps: float, sample_rate: int) -> DecodedClip:
    """The whole file. A file without picture has no size and no rate of its own: any will do."""
    info = probe(str(path))
    fps = fps or DEFAULT_FPS
    frames = math.floor(info.duration_s * fps + 0.5)
    return decode_clip(
        str(path),
        start_s=0.0,
        end_s=max(frames, 1) / fps,
        fps=fps,
        size=(height or 64, width or 64),
        sample_rate=sample_rate or DEFAULT_RATE,
    )


def _scene(truth: Truth, start_s: float, fps: float) -> Scene | None:
    """What happens since the cut began; the last frame at or before counts."""
    whole = scene_of(truth)
    if whole is None:
        return None
    first = math.floor(start_s * truth.fps + 1e-6)
    frames = np.arange(first, len(truth.positions_TK2))
    if round(fps) != truth.fps:
        count = math.floor(len(frames) * fps / truth.fps)
        frames = first + np.floor(np.arange(count) * truth.fps / fps + 1e-6).astype(int)
    contacts_s = truth.contact_times_s - start_s
    return replace(
        whole,
        positions_TB2=whole.positions_TB2[frames],
        visible_TB=whole.visible_TB[frames],
        contacts_s=contacts_s[contacts_s >= 0],
    )
