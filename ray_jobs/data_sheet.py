"""The contact sheet: a row for each of some clips, with eight of its frames, its sound, and what is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from avtok.media import ClipError, Limits
from avtok.reader import ClipReader, open_reader
from ray_jobs.data_figures import strip_jpeg, waveform
from ray_jobs.probing import reason_of
from ray_jobs.stores import local_copy

FRAMES = 8
SHOWN_S = 20.0  # of a clip; the rest is said in words
HEIGHT_PX = 84
WAVE_HZ = 8000
MOST_LETTERS = 280
Row = dict[str, Any]


def chosen_rows(num_rows: int, count: int) -> list[int]:
    """Evenly spread over the manifest, so that every source is seen."""
    count = min(count, num_rows)
    return [int((i + 0.5) * num_rows / count) for i in range(count)]


def sheet(rows: list[Row], progress: Callable[[int, int], None] | None = None) -> str:
    made = []
    with open_reader(limits=Limits()) as reader:
        for done, row in enumerate(rows, start=1):
            made.append(clip_card(row, reader))
            if progress:
                progress(done, len(rows))
    return "".join(made)


def clip_card(row: Row, reader: ClipReader) -> str:
    name = PurePosixPath(row["uri"]).name
    head = f"<header><b>{escape(name)}</b><span>{escape(facts_line(row))}</span></header>"
    return f'<article class="card shown">{head}{_media(row, reader, name)}{_words(row)}</article>'


def facts_line(row: Row) -> str:
    span_s = row["end_s"] - row["start_s"]
    facts = [f"{row['start_s']:.2f} to {row['end_s']:.2f} s" if row["start_s"] else f"{span_s:.2f} s"]
    if row["has_video"]:
        depth = f" {row['bit_depth']} bit" if row["bit_depth"] > 8 else ""
        rate = (
            "" if not row["fps"] else f" at {row['fps']:.4g} frames/s{', variable' if row['is_vfr'] else ''}"
        )
        facts.append(f"{row['width']}x{row['height']}{rate}, {row['video_codec']}{depth}")
        facts += ["HDR"] if row["is_hdr"] else []
        facts += [f"turned {row['rotation_deg']}°"] if row["rotation_deg"] else []
    if row["has_sound"]:
        loud = "" if row["loudness_lufs"] is None else f", {row['loudness_lufs']:.1f} LUFS"
        facts.append(f"{row['audio_codec']} {row['sample_rate'] / 1000:g} kHz x {row['channels']}{loud}")
    else:
        facts.append("no sound")
    if row["has_video"] and row["has_sound"] and row["drift_s"] > 0.1:
        facts.append(f"ends part by {row['drift_s']:.2f} s")
    return " · ".join(facts)


def _media(row: Row, reader: ClipReader, name: str) -> str:
    span_s = min(row["end_s"] - row["start_s"], SHOWN_S)
    is_still = row["duration_s"] == 0
    span_s = 1.0 if is_still else max(span_s, 0.04)
    width = int(np.clip(round(HEIGHT_PX * row["width"] / max(row["height"], 1)), 40, 170)) // 2 * 2
    try:
        clip = reader.decode_clip(
            str(local_copy(row["uri"])),
            start_s=row["start_s"],
            end_s=row["start_s"] + span_s,
            fps=(1 if is_still else FRAMES) / span_s,
            size=(HEIGHT_PX, width if row["has_video"] else 40),
            sample_rate=WAVE_HZ,
            audio_uri=str(local_copy(row["audio_uri"])) if row["audio_uri"] else None,
        )
    except (ClipError, OSError) as error:
        return f'<p class="missing">Cannot be shown: {escape(reason_of(error, row["uri"]))}</p>'
    html = ""
    if clip.video_THWC is not None and len(clip.video_THWC):
        alt = f"{len(clip.video_THWC)} frames of {name}"
        html += f'<img src="{strip_jpeg(clip.video_THWC)}" alt="{escape(alt, quote=True)}">'
    if clip.audio_N is not None and len(clip.audio_N) and row["has_sound"]:
        html += waveform(clip.audio_N, alt=f"waveform of {name}")
    rest_s = row["end_s"] - row["start_s"] - SHOWN_S
    more = f'<p class="rest">The first {SHOWN_S:g} s; {rest_s:.0f} s more.</p>' if rest_s > 0.5 else ""
    return f'<div class="seen">{html}</div>{more}'


def _words(row: Row) -> str:
    cues = json.loads(row["speech_json"]) if row["speech_json"] else []
    timed = " ".join(f"[{cue['start']:g} s] {cue['text']}" for cue in cues if "start" in cue)
    said = [("caption", row["caption"]), ("transcript", timed or row["transcript"])]
    lines = "".join(
        f'<p class="words"><b>{kind}</b> {escape(_clipped(text))}</p>' for kind, text in said if text
    )
    actions = '<p class="words"><b>actions</b> one row a frame</p>' if row["actions"] else ""
    note = f'<p class="words"><b>note</b> {escape(_clipped(row["note"]))}</p>' if row["note"] else ""
    return lines + actions + note


def _clipped(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
