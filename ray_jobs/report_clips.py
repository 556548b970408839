"""The clips of the report: before training, after, and truth, as frames and sound over time and to play."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from avtok.decode import ClipError, DecodedClip, decode_clip, probe
from ray_jobs.report_checks import number
from ray_jobs.report_figures import filmstrip_png, sound_png
from ray_jobs.rollout_rows import shown
from worldmodel.checks.position import LOST_ERROR

STRIP_COLUMNS = 16
STRIP_SIDE = 96  # pixels: shorter side at which larger clips are decoded for the strips
SOUND_RATE = 16000


def clips_section(folder: Path, rows: Any, note: str, checks: dict[str, Any] | None, show: int) -> str:
    """The first `show` rows of rollouts.json, whose files lie in `folder`. `note` says why there are none."""
    if not rows:
        return f'<p class="missing">No continued clips: {escape(note or "rollouts.json lists none.")}</p>'
    errors = {}
    if checks and "per_episode" in checks["checks"].get("position_error", {}):
        per_episode = checks["checks"]["position_error"]["per_episode"]
        errors = dict(zip(checks.get("sample_ids", []), per_episode, strict=False))
    cards = "".join(_clip(folder, row, errors.get(row.get("sample_id"))) for row in rows[:show])
    rest = len(rows) - show
    return cards + (f'<p class="lead">{rest} more are in the folder rollouts.</p>' if rest > 0 else "")


def _clip(folder: Path, row: dict[str, Any], error: float | None) -> str:
    name = escape(row.get("caption") or f"clip {row.get('sample_id', '')}")
    try:
        clips = [(key, title, folder / file, _decode(folder / file)) for key, title, file in shown(row)]
    except ClipError as reason:
        return f'<p class="missing">{name} cannot be shown: {escape(str(reason))}</p>'
    total_s = max(clip.end_s for *_, clip in clips)
    prefix_s = float(row["prefix_s"])
    given = min(100 * prefix_s / total_s, 100.0)
    facts = [f"{prefix_s:g} s given, {total_s - prefix_s:.2g} s generated", f"sample {row.get('sample_id')}"]
    facts += [f"seed {row['seed']}"] if "seed" in row else []
    if error is not None:
        off = "no body found" if error >= LOST_ERROR else f"{number(error)} box widths off"
        facts.append(f"{off} at 0.25 s")
    return f"""
<article class="card clip">
<header><b>{name}</b>{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</header>
<div class="body">
<div>
<div class="strips">{"".join(_strip(key, title, clip, name) for key, title, _, clip in clips)}
<span class="cut" style="left:{given:.2f}%"></span></div>
<div class="span"><i style="width:{given:.2f}%">given</i>
<i style="width:{100 - given:.2f}%">generated</i></div>
</div>
<div class="players">{"".join(_player(key, title, path, name) for key, title, path, _ in clips)}
<button class="together" hidden>Play all, with the trained model's sound</button></div>
</div>
</article>"""


def _decode(path: Path) -> DecodedClip:
    info = probe(str(path))
    fps = info.fps or 16.0
    side = min(info.height, info.width, STRIP_SIDE) or STRIP_SIDE
    return decode_clip(
        str(path),
        start_s=0.0,
        end_s=max(1, round(info.duration_s * fps)) / fps,
        fps=fps,
        size=(side, side),
        sample_rate=SOUND_RATE,
    )


def _strip(key: str, title: str, clip: DecodedClip, name: str) -> str:
    what = escape(f"{title} of {name}")
    html = f'<p class="name {key}">{escape(title)}</p>'
    if clip.video_THWC is not None:
        address = filmstrip_png(clip.video_THWC, columns=STRIP_COLUMNS)
        html += f'<img src="{address}" alt="{what}: frames in order of time">'
    if clip.audio_N is not None:
        address = sound_png(clip.audio_N, sample_rate=SOUND_RATE)
        html += (
            f'<img class="sound" src="{address}" alt="{what}: mel spectrum of its sound over the same time">'
        )
    return html


def _player(key: str, title: str, path: Path, name: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"""
<figure><video controls loop playsinline preload="metadata" data-key="{key}"
aria-label="{escape(title)} of {name}" src="data:video/mp4;base64,{data}"></video>
<figcaption>{escape(title)}</figcaption></figure>"""
