"""A manifest as a Markdown table: each file, and what is known of it or why it is left out."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

from ray_jobs.data_sheet import facts_line
from ray_jobs.manifest_table import plain_reason, read_left_out, read_manifest

MANY = 20  # files of one folder beyond which they are one row


def as_table(manifest: str) -> str:
    """One row a file, by name; folders of very many usable files are one row."""
    said: dict[str, str] = {}
    for row in read_manifest(manifest).to_pylist():
        said[row["uri"]] = _cell(facts_line(row) + _oddities(row))
    for row in read_left_out(manifest):
        said[row["uri"]] = f"**left out**: {_cell(plain_reason(row))}"
    root = os.path.commonpath([str(PurePosixPath(uri).parent) for uri in said]) if said else ""
    folders: dict[str, list[str]] = defaultdict(list)
    for uri in sorted(said):
        folders[str(PurePosixPath(uri).parent)].append(uri)
    lines = ["| file | what is known |", "|---|---|"]
    for folder, uris in sorted(folders.items()):
        usable = [uri for uri in uris if "**left out**" not in said[uri]]
        if len(usable) > MANY and len({PurePosixPath(uri).suffix for uri in usable}) == 1:
            name = PurePosixPath(os.path.relpath(folder, root)) / f"*{PurePosixPath(usable[0]).suffix}"
            lines.append(f"| {name} | {len(usable)} files, all usable |")
            uris = [uri for uri in uris if uri not in usable]
        lines += [f"| {os.path.relpath(uri, root)} | {said[uri]} |" for uri in uris]
    return "\n".join(lines)


def _oddities(row: dict[str, Any]) -> str:
    """What readers handle, and what could not be used."""
    found = []
    if row["av_start_s"] is not None and abs(row["av_start_s"]) > 0.02:
        found.append(f"sound starts {row['av_start_s']:+.3f} s")
    first_s = min(t for t in (row["video_start_s"], row["audio_start_s"], 1e9) if t is not None)
    if abs(first_s) > 0.1 and first_s < 1e9:
        found.append(f"first stamp {first_s:.3f} s")
    if row["is_vfr"]:
        found.append(f"frames last {row['min_frame_s'] * 1000:.0f} to {row['max_frame_s'] * 1000:.0f} ms")
    streams = row["num_video_streams"], row["num_audio_streams"], row["num_other_streams"]
    if max(streams[:2]) > 1 or streams[2]:
        found.append(f"streams {streams[0]}+{streams[1]}+{streams[2]}")
    if row["missing_s"] > 0.01:
        found.append(f"{row['missing_s']:.2f} s of sound missing in {row['num_gaps']} gaps")
    if row["has_sound"] and row["silent_fraction"] > 0.9:
        found.append("hardly any sound")
    if row["note"]:
        found.append(row["note"])
    return "".join(f"; {each}" for each in found)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
