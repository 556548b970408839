"""One run -> report.html, complete in itself: it asks nothing of the network."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ray_jobs.report_checks import checks_section, number, verdict
from ray_jobs.report_clips import clips_section
from ray_jobs.report_figures import loss_figures, throughput_figures
from ray_jobs.run_folder import WARNINGS

QUARANTINE_ROWS = 50  # rows of the table; the counts by reason are complete


def write_report(run_dir: str | Path, *, checks: dict[str, Any] | None = None, show: int = 4) -> Path:
    """Write report.html into a run folder and return its path. A missing piece is said in words.

    Reads run.json, config.yaml, metrics.jsonl, warnings.txt, accounting.json, rollouts/rollouts.json and,
    unless `checks` are given, checks.json. `show` clips are embedded.
    """
    folder = Path(run_dir)
    run, _ = _read_json(folder / "run.json")
    metrics, metrics_note = _read_metrics(folder / "metrics.jsonl")
    accounting, accounting_note = _read_json(folder / "accounting.json")
    rollouts, rollouts_note = _read_json(folder / "rollouts" / "rollouts.json")
    if checks is None:
        checks, checks_note = _read_json(folder / "checks.json")
    else:
        checks_note = ""
    page = Template(files("ray_jobs").joinpath("report_template.html").read_text("utf-8")).substitute(
        title=escape(f"{(run or {}).get('name', folder.resolve().name)}: audio-video world model"),
        verdict=escape(verdict(checks)),
        tiles=_tiles(metrics, checks, accounting),
        clips=clips_section(folder / "rollouts", rollouts, rollouts_note, checks, show),
        checks=checks_section(checks, f"No checks: {checks_note}"),
        training=_training(metrics, metrics_note, _read_warnings(folder)),
        data=_data(accounting, accounting_note),
        run=_run_facts(run, folder / "config.yaml"),
    )
    path = folder / "report.html"
    path.write_text(page, "utf-8")
    return path


def _read_json(path: Path) -> tuple[Any, str]:
    """(content, "") or (None, why not)."""
    try:
        return json.loads(path.read_text("utf-8")), ""
    except FileNotFoundError:
        return None, f"{path.name} is not in the run folder."
    except json.JSONDecodeError as error:
        return None, f"{path.name} is not valid JSON in line {error.lineno}: {error.msg}."


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows, and what must be said about them. A killed job may leave half a line."""
    if not path.exists():
        return [], f"{path.name} is not in the run folder."
    rows, broken = [], 0
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            broken += 1
    return rows, f"{broken} lines of {path.name} could not be read and are left out." if broken else ""


def _tiles(
    rows: list[dict[str, Any]], checks: dict[str, Any] | None, accounting: dict[str, Any] | None
) -> str:
    tiles: list[tuple[str, str, str]] = []
    steps = [row["step"] for row in rows if "loss" in row]
    if steps:
        speeds = sorted(row["tokens_per_s"] for row in rows if "tokens_per_s" in row)
        beneath = f"{number(speeds[len(speeds) // 2])} tokens/s (median)" if speeds else ""
        tiles.append(("Steps trained", f"{max(steps) + 1:,}", beneath))
    if checks:
        position, lag = (
            checks["checks"].get("position_error", {}),
            checks["checks"].get("contact_sound_lag", {}),
        )
        ratio = checks.get("position_error_025s_over_frozen")
        if ratio is not None:
            tiles.append(
                ("Position error", f"{ratio:.0%}", f"of a frozen frame's, at {position['at_s']:g} s")
            )
        if lag.get("value") is not None:
            tiles.append(("Bounce to sound", f"{lag['value']:.0f} ms", f"truth {number(lag['floor'])} ms"))
    if accounting:
        bad = len(accounting["quarantined"])
        tiles.append(
            ("Clips used", f"{accounting['consumed']:,}", f"of {accounting['planned']:,}; {bad} quarantined")
        )
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(below)}</small></dd></div>"
        for name, value, below in tiles
    )
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


def _read_warnings(folder: Path) -> list[str]:
    """Each once: a run that went on from a commit may have come by the same place again."""
    path = folder / WARNINGS
    return list(dict.fromkeys(path.read_text("utf-8").splitlines())) if path.exists() else []


def _training(rows: list[dict[str, Any]], note: str, warnings: list[str]) -> str:
    figures = loss_figures(rows) + throughput_figures(rows)
    notes = [*warnings, *([note] if note else [])]
    said = "".join(f'<p class="missing">{escape(line)}</p>' for line in notes)
    if not figures:
        return said or '<p class="missing">No step was reported.</p>'
    plots = "".join(f'<figure class="card"><figcaption>{c}</figcaption>{svg}</figure>' for c, svg in figures)
    lead = '<p class="lead">Thin lines are single steps, thick ones a running mean.</p>'
    return f'{said}{lead}<div class="plots">{plots}</div>'


def _data(accounting: dict[str, Any] | None, note: str) -> str:
    """Plan = consumed + quarantined + remaining, and every quarantined file with its reason."""
    if not accounting:
        return f'<p class="missing">What was consumed is not known: {escape(note)}</p>'
    bad = accounting["quarantined"]
    planned, used, left = accounting["planned"], accounting["consumed"], accounting["remaining"]
    sums_up = planned == used + len(bad) + left
    epochs = accounting.get("epochs", [])
    num_epochs = len(epochs) if isinstance(epochs, list) else epochs
    share = 100 / max(planned, 1)
    html = f"""
<div class="card">
<b>{planned:,} planned = {used:,} consumed + {len(bad):,} quarantined + {left:,} remaining</b>
{"" if sums_up else "<b>(does not add up)</b>"}
<div class="split" role="img" aria-label="{used} of {planned} clips consumed, {len(bad)} quarantined">
<span class="used" style="width:{used * share:.2f}%"></span>
<span class="bad" style="width:{len(bad) * share:.2f}%"{"" if bad else " hidden"}></span></div>
<ul class="key"><li class="used">consumed, {num_epochs} epochs begun</li><li class="bad">quarantined</li>
<li>remaining</li></ul></div>"""
    left_out = accounting.get("left_out", [])
    if left_out:
        html += f'<p class="lead">{len(left_out):,} files could not be planned at all.</p>'
    if not bad and not left_out:
        return html + '<p class="lead">Nothing was quarantined.</p>'
    reasons = Counter((row["uri"], row["reason"]) for row in bad + left_out).most_common()
    body = "".join(
        f"<tr><td>{escape(str(uri))}</td><td>{escape(str(reason))}</td><td>{count}</td></tr>"
        for (uri, reason), count in reasons[:QUARANTINE_ROWS]
    )
    more = (
        f'<p class="lead">{len(reasons) - QUARANTINE_ROWS} more files.</p>'
        if len(reasons) > QUARANTINE_ROWS
        else ""
    )
    head = "<thead><tr><th>file</th><th>reason</th><th>clips</th></tr></thead>"
    return f"""{html}
<div class="card"><table class="quarantine facts">{head}<tbody>{body}</tbody></table>{more}</div>"""


def _run_facts(run: Any, config: Path) -> str:
    html = '<p class="missing">No run.json: command, versions and machine are not known.</p>'
    if run:
        body = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in _flat(run))
        html = f'<div class="card"><table class="facts"><tbody>{body}</tbody></table></div>'
    if config.exists():
        text = escape(config.read_text("utf-8"))
        html += f"<details><summary>Configuration</summary><pre>{text}</pre></details>"
    return html


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested facts as dotted names."""
    if isinstance(value, dict):
        return [
            row for key, item in value.items() for row in _flat(item, f"{name}.{key}" if name else str(key))
        ]
    if isinstance(value, list):
        return [(name, " ".join(map(str, value)))]
    return [(name, str(value))]
