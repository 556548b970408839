"""The check section of the report, and its one-sentence verdict in words."""

from __future__ import annotations

from html import escape
from typing import Any

from ray_jobs.report_figures import horizon_figure
from worldmodel.checks.position import LOST_ERROR

NAMES = {
    "position_error": (
        "Position, near",
        "Distance of the body from its true place, {at_s:g} s after the cut.",
    ),
    "position_error_1s": ("Position, far", "The same after {at_s:g} s, when bounces have happened."),
    "valid_prediction_time": ("Time it stays right", "Until a body is further off than its radius."),
    "permanence": (
        "Hidden things stay",
        "Bodies that come out again from behind the plate, near their true place.",
    ),
    "energy_drift": ("Energy", "Motion energy at the end against that of the given part."),
    "contact_sound_lag": ("Bounce to sound", "Median time between a bounce that is seen and its sound."),
    "onset_f1": ("Sounds at the right time", "Sounds against true contacts, matched within 50 ms."),
    "sound_identity": ("Sound of the material", "Sounds at the pitch of a material that the clip holds."),
    "freeze": ("Standing still", "Frames without any change to the one before."),
    "colour_drift": ("Colour drift", "Mean colour at the end against the given part."),
    "loudness_drift": ("Loudness drift", "Level of the continuation against the given part."),
}
STILL_SHARE = 0.1  # more frames without change than this are said in the verdict


def checks_section(result: dict[str, Any] | None, note: str) -> str:
    """Table with bars, then error against horizon. `note` says why there is no result."""
    if result is None:
        return f'<p class="missing">{escape(note)}</p>'
    titles = ("check", "rollout", "truth", "without a model", "score, and where it stands")
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(_row(name, check) for name, check in result["checks"].items())
    html = f"""
<div class="card"><table class="checks"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"""
    horizon = result["checks"].get("position_error", {}).get("horizon")
    if horizon:
        html += f"""
<figure class="card wide"><figcaption>Position error against horizon, median over clips</figcaption>
{horizon_figure(horizon)}</figure>"""
    unusable = "; ".join(str(row["reason"]) for row in result.get("unusable", []))
    return html + (f'<p class="missing">Not checked: {escape(unusable)}</p>' if unusable else "")


def verdict(result: dict[str, Any] | None) -> str:
    """What a reader should take away. Says "better" only where the interval lies on the better side."""
    if result is None:
        return "No checks were run, so nothing is known yet about how the continued clips behave."
    checks = result["checks"]
    parts = [_position_words(result), _sound_words(checks.get("contact_sound_lag", {}))]
    still = checks.get("freeze", {})
    if "value" in still:
        if still["value"] > max(2 * still["floor"], STILL_SHARE):
            parts.append(f"{still['value']:.0%} of the generated frames stand still")
        elif not any(parts):
            parts.append("the pictures keep moving, but there is no truth to judge position and sound by")
    sentence = "; ".join(part for part in parts if part)
    if not sentence:
        if any("value" in check for check in checks.values()):
            return "Motion could not be judged on these clips; the table says what could, and why."
        return "None of the checks could be made on these clips; the reasons are in the table."
    return sentence[0].upper() + sentence[1:] + "."


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits; shares as percent."""
    if value is None:
        return "not measurable"
    if unit.startswith("share"):
        return f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"
    if abs(value) < 1e-6:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _position_words(result: dict[str, Any]) -> str:
    check, ratio = result["checks"].get("position_error", {}), result.get("position_error_025s_over_frozen")
    if check.get("value") is None or ratio is None:
        return ""
    frozen = check["baselines"]["frozen_frame"]
    after = f"{check['at_s']:g} s after the given part the body is"
    if check["value"] >= LOST_ERROR:
        return f"{after} not to be found in most clips, where a frozen frame is {frozen:.2g} box widths off"
    after = f"{after} {check['value']:.2g} box widths off"
    if check["ci_high"] < frozen:
        return f"{after}, {ratio:.0%} of the error of a frozen frame"
    if check["ci_low"] > frozen:
        return f"{after}, worse than a frozen frame ({frozen:.2g})"
    return f"{after}, which cannot be told from a frozen frame ({frozen:.2g})"


def _sound_words(check: dict[str, Any]) -> str:
    if check.get("value") is None:
        return ""
    heard = f"{check['value']:.0f} ms (median) from where they are seen"
    other = check["baselines"].get("another_sound")
    if other is None:
        return f"bounces are heard {heard}"
    if check["ci_high"] < other:
        return f"bounces are heard {heard}, against {other:.0f} ms by chance"
    return f"bounces are heard no closer than by chance: {heard}, chance {other:.0f} ms"


def _row(name: str, check: dict[str, Any]) -> str:
    title, why = NAMES.get(name, (name.replace("_", " "), ""))
    if "skipped" in check:
        reason = escape(f"Not measured: {check['skipped']}.")
        return f'<tr><th scope="row">{escape(title)}</th><td colspan="4" class="skipped">{reason}</td></tr>'
    why, unit = escape(why.format(**check)), check["unit"]
    shown_unit = "" if unit.startswith("share") else f" {escape(unit)}"
    beside = {**check["baselines"], **check.get("references", {})}
    others = "".join(f"<small>{escape(_words(key))} {number(v, unit)}</small>" for key, v in beside.items())
    return f"""
<tr><th scope="row">{escape(title)}<span class="why">{why} {_details(check)}</span></th>
<td data-label="rollout"><b>{number(check["value"], unit)}</b>{shown_unit}
<small>95% CI {number(check["ci_low"], unit)} to {number(check["ci_high"], unit)}</small></td>
<td data-label="truth">{number(check["floor"], unit)}</td>
<td data-label="without a model">{others}</td>
<td class="scale">{_bar(check)}</td></tr>"""


def _details(check: dict[str, Any]) -> str:
    words = [f"{check['episodes']} clips"] if "episodes" in check else []
    if check.get("signed_lag_ms") is not None:
        words.append(f"most often {check['signed_lag_ms']:+.0f} ms")
    if "contacts_seen" in check:
        words.append(f"{check['contacts_seen']} bounces seen, {check['contacts_in_truth']} true")
    if "longest_freeze_s" in check:
        words.append(f"longest {check['longest_freeze_s']:.2g} s")
        words.append(f"black {number(check['black_share'], 'share')}")
    return escape(f"({', '.join(words)})") if words else ""


def _bar(check: dict[str, Any]) -> str:
    """From floor (left) to the best baseline (right); what lies beyond an end is drawn at it."""
    if check["score"] is None:
        return "<small>truth and baseline coincide</small>"
    floor, baseline = check["floor"], check["baselines"][check["scored_against"]]

    def percent(value: float) -> float:
        return 100 * min(max((value - floor) / (baseline - floor), 0.0), 1.0)

    at = percent(check["value"])
    low, high = sorted(at if end is None else percent(end) for end in (check["ci_low"], check["ci_high"]))
    against = escape(_words(check["scored_against"]))
    return f"""<b>{check["score"]:.2f}</b>
<div class="bar" role="img" aria-label="score {check["score"]:.2f}: 1 equals the truth, 0 equals {against}">
<span class="ci" style="left:{low:.1f}%;width:{high - low:.1f}%"></span>
<span class="dot" style="left:{at:.1f}%"></span></div>
<div class="ends"><span>truth</span><span>{against}</span></div>"""


def _words(name: str) -> str:
    return name.replace("_", " ")
