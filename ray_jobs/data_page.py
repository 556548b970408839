"""`worldmodel data stats --page`: a data set as one HTML file that asks nothing of the network."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from html import escape
from importlib.resources import files
from pathlib import Path, PurePosixPath
from string import Template
from typing import Any

import numpy as np

from ray_jobs.data_figures import bars, histogram
from ray_jobs.data_sheet import chosen_rows, sheet
from ray_jobs.data_stats import Rows, describe
from ray_jobs.manifest_table import plain_reason, read_left_out
from ray_jobs.metrics import reason_label

EXAMPLES = 6  # of each kind of reason
KINDS = {
    "missing": "not there",
    "not_media": "not media, or encrypted",
    "undecodable": "nothing could be decoded",
    "ends_early": "ends early",
    "too_short": "too short",
    "timed_out": "took too long",
    "too_large": "beyond the limits",
    "crashed": "crashed its decoder",
    "bad_row": "a row that says nonsense",
    "silent": "silent",
    "static": "static picture",
    "black": "black picture",
    "duplicate": "duplicate",
    "drift": "sound and picture part",
    "too_small": "picture too small",
    "other": "other",
}


def write_data_page(
    manifest: str,
    path: str | Path,
    *,
    clips: int = 24,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Figures, a contact sheet of `clips` clips, and what was left out and why."""
    facts, rows, bad = describe(manifest), Rows(manifest), read_left_out(manifest)
    picked = [rows.table.slice(i, 1).to_pylist()[0] for i in chosen_rows(rows.table.num_rows, clips)]
    template = files("ray_jobs").joinpath("data_template.html").read_text("utf-8")
    page = Template(template).substitute(
        title=escape(f"{PurePosixPath(manifest).name}: clips for an audio-video world model"),
        style=_style(),
        verdict=escape(verdict(facts)),
        tiles=_tiles(facts),
        figures=_figures(rows),
        kinds=_kinds(facts),
        sheet=sheet(picked, progress) or '<p class="missing">No clip was asked for.</p>',
        left_out=_left_out(bad, facts["clips"]),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, "utf-8")
    return path


def verdict(facts: dict[str, Any]) -> str:
    """The data set in a sentence or two."""
    silent = facts["clips"] - facts["with_sound"]
    said = (
        f"{facts['clips']:,} clips, {_hours(facts['hours'])}, {_hours(facts['hours_with_sound'])} with sound."
    )
    lacks = []
    if silent:
        lacks.append(f"{silent:,} have no sound")
    if facts["without_picture"]:
        lacks.append(f"{facts['without_picture']:,} no picture")
    if facts["clips"] > facts["with_caption"]:
        lacks.append(f"{facts['clips'] - facts['with_caption']:,} no caption")
    left = f" {facts['quarantined']:,} were left out." if facts["quarantined"] else " None was left out."
    return said + (f" {', '.join(lacks)}.".replace(" have", " have", 1) if lacks else "") + left


def _hours(hours: float) -> str:
    return (
        f"{hours:,.1f} h"
        if hours >= 1
        else f"{hours * 60:.1f} min"
        if hours * 60 >= 1
        else f"{hours * 3600:.0f} s"
    )


def _tiles(facts: dict[str, Any]) -> str:
    loud, drift = facts["loudness_lufs"], facts["drift_s"]
    tiles = [
        ("Clips", f"{facts['clips']:,}", f"of {facts['files']:,} files"),
        ("Length", f"{facts['seconds']['median']:.3g} s", f"median; all {_hours(facts['hours'])}"),
        (
            "Labels",
            f"{facts['with_caption'] / facts['clips']:.0%}",
            f"captions; transcripts {facts['with_transcript'] / facts['clips']:.0%}, actions "
            f"{facts['with_actions'] / facts['clips']:.0%}",
        ),
        ("To decode once", _hours(facts["core_hours_to_decode"]), "of one core, estimated"),
    ]
    if loud:
        tiles.append(
            ("Loudness", f"{loud['median']:.1f} LUFS", f"80% in {loud['10%']:.0f} to {loud['90%']:.0f}")
        )
    if drift:
        tiles.append(
            ("Drift", f"{drift['90%'] * 1000:.0f} ms", f"90% part by less; most {drift['most']:.2f} s")
        )
    tiles.append(("Left out", f"{facts['quarantined']:,}", "with their reasons below"))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(below)}</small></dd></div>"
        for name, value, below in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _figures(rows: Rows) -> str:
    seen, heard = rows["has_video"].astype(bool), rows["has_sound"].astype(bool)
    both = seen & heard
    side_N = np.minimum(rows["width"], rows["height"])[seen].astype(float)
    drift_ms_N = np.maximum(rows["drift_s"][both].astype(float) * 1000, 0.1)
    cost_N = rows["decode_cost_s"].astype(float) * 1000
    plots = [
        ("Length", histogram(rows.seconds, x_label="seconds", alt="Lengths of clips", log_x=True)),
        (
            "Frame rate",
            histogram(rows["fps"][seen].astype(float), x_label="frames a second", alt="Frame rates"),
        ),
        ("Size", histogram(side_N, x_label="pixels of the shorter side", alt="Sizes of pictures")),
        (
            "Loudness",
            histogram(
                rows["loudness_lufs"][heard].astype(float),
                x_label="LUFS",
                alt="Loudness of clips",
                color="audio",
            ),
        ),
        (
            "How far sound and picture part",
            histogram(drift_ms_N, x_label="ms over the file", alt="Drift", color="audio", log_x=True),
        ),
        (
            "Cost of decoding",
            histogram(
                cost_N, x_label="ms of one core a second", alt="Cost of decoding", color="muted", log_x=True
            ),
        ),
    ]
    return "".join(
        f'<figure class="card"><figcaption>{escape(caption)}</figcaption>{svg}</figure>'
        for caption, svg in plots
        if svg
    )


def _kinds(facts: dict[str, Any]) -> str:
    oddities = {
        "late or early sound": facts["late_sound"],
        "variable frame rate": facts["variable_rate"],
        "turned pictures": facts["turned"],
        "HDR": facts["hdr"],
        "interlaced": facts["interlaced"],
        "still pictures": facts["still_pictures"],
        "pictures without sound": facts["clips"] - facts["with_sound"],
        "sound without picture": facts["without_picture"],
    }
    labels = {
        "caption": facts["with_caption"],
        "transcript": facts["with_transcript"],
        "timed speech": facts["with_timed_speech"],
        "actions": facts["with_actions"],
    }
    tables = [
        ("Containers", facts["containers"]),
        ("Codecs of pictures", facts["picture_codecs"]),
        ("Codecs of sound", facts["sound_codecs"]),
        ("Sizes", facts["sizes"]),
        ("Labels", labels),
        ("Handled, and good to know", oddities),
    ]
    return "".join(
        f'<figure class="card"><figcaption>{escape(name)}</figcaption>{bars(counts)}</figure>'
        for name, counts in tables
        if counts
    )


def _left_out(bad: list[dict[str, str]], num_kept: int) -> str:
    """Counts by kind, and some of each with its file and its reason."""
    if not bad:
        return '<p class="lead">Nothing was left out.</p>'
    by_kind: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in bad:
        by_kind[reason_label(row["reason"])].append(row)
    share = len(bad) / (len(bad) + num_kept)
    lead = f'<p class="lead">{len(bad):,} rows, {share:.1%} of what was given.</p>'
    counts = {KINDS.get(kind, kind): len(rows) for kind, rows in by_kind.items()}
    html = f'{lead}<div class="card">{bars(counts, most=20)}</div>'
    for kind, rows in sorted(by_kind.items(), key=lambda each: -len(each[1])):
        cells = "".join(
            f"<tr><td>{escape(_tail(row['uri']))}</td><td>{escape(plain_reason(row))}</td></tr>"
            for row in rows[:EXAMPLES]
        )
        more = f'<p class="rest">and {len(rows) - EXAMPLES:,} more</p>' if len(rows) > EXAMPLES else ""
        html += (
            f'<h3>{escape(KINDS.get(kind, kind).capitalize())}</h3><div class="card">'
            f'<table class="facts quarantine"><tbody>{cells}</tbody></table>{more}</div>'
        )
    return html


def _tail(uri: str) -> str:
    """The last two parts of an address."""
    return "/".join(PurePosixPath(uri).parts[-2:])


def _style() -> str:
    """The report's own, so that both look alike."""
    report = files("ray_jobs").joinpath("report_template.html").read_text("utf-8")
    found = re.search(r"<style>(.*?)</style>", report, re.DOTALL)
    assert found, "report_template.html has no <style>"
    return found[1]
