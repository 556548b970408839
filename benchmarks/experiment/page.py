"""The page of the experiment: what may be said, tables with intervals, curves, differences, probes."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.experiment.arms import ARMS, PLAIN, SELF_FLOW, Tier
from benchmarks.experiment.paired import interval
from benchmarks.experiment.readouts import BINS
from benchmarks.experiment.summary import FOLLOWED, METRICS, PROBED_T, compared, statements, student_layer

Result = dict[str, Any]
COLORS = dict(
    zip(
        ARMS,
        ("#5b6470", "#2f6fdb", "#e08a1e", "#9aa3ad", "#2f9e6e", "#b455c8", "#c4504b", "#4bb3c4", "#a68a64"),
        strict=True,
    )
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0 }
td, th { padding: .25em .6em; border-bottom: 1px solid #dde2e8; text-align: right }
td:first-child, th:first-child { text-align: left }
.yes { font-weight: 600 } img { max-width: 100% } .wide { overflow-x: auto }
"""
TITLE = "Self-Flow against its rivals"


def figures(tier: Tier, results: list[Result], summary: dict[str, Any]) -> dict[str, bytes]:
    """PNG files by name, of what can be compared so far."""
    if not summary:
        return {}
    drawn = {"curves.png": _curves(tier, results, summary), "by_noise.png": _by_noise(results, summary)}
    first = next(iter(summary.values()))
    if PLAIN in first:
        drawn["differences.png"] = _differences(first)
    if any("probes" in result for result in results):
        drawn["probes.png"] = _probes(tier, results, summary)
    return {name: _png(figure) for name, figure in drawn.items()}


def page(
    tier: Tier, results: list[Result], summary: dict[str, Any], pictures: dict[str, bytes], facts: list[str]
) -> str:
    """One self-contained HTML file."""
    said = "".join(f"<li>{html.escape(line)}</li>" for line in statements(tier, results))
    tables = "".join(
        f"<h2>{html.escape(size)}</h2>{_table(arms)}{_followed(arms)}" for size, arms in summary.items()
    )
    images = "".join(
        f'<img alt="{name}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in pictures.items()
    )
    about = "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{TITLE}</title><style>{STYLE}</style>"
        f"<h1>{TITLE}</h1><ul>{about}</ul><h2>What may be said</h2><ul>{said}</ul>{images}"
        f"{tables}</html>"
    )


def _table(arms: dict[str, Any]) -> str:
    """Means over seeds, and the paired difference to flow matching: bold where its interval excludes 0."""
    head = "".join(f"<th>{html.escape(metric.title)}</th>" for metric in METRICS.values())
    rows = []
    for arm in arms.values():
        cells = "".join(_cell(arm["metrics"][name]) for name in METRICS)
        cells += "".join(_reached(arm["reaches_plain"][f"{unit}_over_plain"]) for unit in ("steps", "flops"))
        rows.append(f"<tr><td>{html.escape(arm['title'])}</td><td>{arm['n']}</td>{cells}</tr>")
    ends = "".join(f"<th>{unit} to flow matching's end, over its own</th>" for unit in ("steps", "FLOPs"))
    return (
        f"<div class=wide><table><tr><th>arm</th><th>seeds</th>{head}{ends}</tr>{''.join(rows)}</table></div>"
    )


def _reached(parts: list[float | None]) -> str:
    """A number a seed."""
    return f"<td>{', '.join('never' if x is None else f'{x:.2f}' for x in parts)}</td>"


def _followed(arms: dict[str, Any]) -> str:
    """How near features are to what they follow at the end, and in how many directions that varies."""
    rows = "".join(
        f"<tr><td>{html.escape(arm['title'])}</td>"
        + "".join(
            f"<td>{', '.join(f'{value:.2f}' for value in arm['followed'][name])}</td>" for name in FOLLOWED
        )
        + "</tr>"
        for arm in arms.values()
        if arm["followed"]
    )
    if not rows:
        return ""
    return (
        "<p>What features follow, at the end, a number a seed. A cosine above 0.95 so early leaves little to "
        "follow, and a rank of 1 says that the features differ from each other along one direction.</p>"
        "<table><tr><th>arm</th><th>cosine, picture</th><th>cosine, sound</th>"
        f"<th>rank of the followed, picture</th><th>rank, sound</th></tr>{rows}</table>"
    )


def _cell(metric: dict[str, Any]) -> str:
    if metric["mean"] is None:
        return "<td></td>"
    text, difference = f"{metric['mean']:.4g}", metric["minus_plain"]
    if difference is None or difference["low"] is None:
        return f"<td>{text}</td>"
    excludes = difference["low"] > 0 or difference["high"] < 0
    numbers = f"{difference['mean']:+.3g} [{difference['low']:+.3g}, {difference['high']:+.3g}]"
    return f"<td>{text}<br><span class={'yes' if excludes else 'no'}>{numbers}</span></td>"


def _curves(tier: Tier, results: list[Result], summary: dict[str, Any]) -> Figure:
    """Held-out loss against steps and against FLOPs; thin lines are seeds."""
    figure = Figure(figsize=(4.4 * len(summary), 7), layout="constrained")
    axes = figure.subplots(2, len(summary), squeeze=False)
    for column, size in enumerate(summary):
        for arm in summary[size]:
            runs = list(compared(results, size, arm).values())
            for row in range(2):
                per_step = 1.0 if row == 0 else runs[0]["flops_per_step"] / 1e12
                for number, run in enumerate(runs):
                    steps, losses = zip(*run["curve"], strict=True)
                    axes[row, column].plot(
                        [step * per_step for step in steps],
                        losses,
                        color=COLORS[arm],
                        linewidth=1.6 if arm in (PLAIN, SELF_FLOW) else 0.9,
                        alpha=0.9,
                        label=ARMS[arm].title if number == 0 else None,
                    )
        last = [run["curve"][-1][1] for run in results if run["size"] == size and "curve" in run]
        for row, label in enumerate(("steps", "TFLOP")):
            axes[row, column].set_xlabel(label)
            axes[row, column].set_ylim(0.98 * min(last), 1.3 * max(last))
            axes[row, column].grid(alpha=0.25)
        axes[0, column].set_title(size)
    axes[0, 0].set_ylabel("held-out loss")
    axes[1, 0].set_ylabel("held-out loss")
    axes[0, 0].legend(fontsize=7)
    return figure


def _differences(arms: dict[str, Any]) -> Figure:
    """Paired differences to plain flow matching at the first size, in percent of its mean, where that is not
    about zero."""
    names = [arm for arm in arms if arm != PLAIN]
    plain = arms[PLAIN]["metrics"]
    shown = [
        name
        for name in METRICS
        if plain[name]["mean"] and (plain[name]["low"] or 1) * (plain[name]["high"] or 1) > 0
    ]
    figure = Figure(figsize=(3.0 * min(4, len(shown)) + 2, 2.6 * -(-len(shown) // 4)), layout="constrained")
    axes = figure.subplots(-(-len(shown) // 4), min(4, len(shown)), squeeze=False, sharey=True)
    for index, name in enumerate(shown):
        axis, metric = axes[index // 4, index % 4], METRICS[name]
        scale = 100 / abs(arms[PLAIN]["metrics"][name]["mean"]) * (-1 if metric.lower_is_better else 1)
        for y, arm in enumerate(names):
            difference = arms[arm]["metrics"][name]["minus_plain"]
            if difference is None:
                continue
            axis.plot(scale * difference["mean"], y, "o", color=COLORS[arm], markersize=5)
            if difference["low"] is not None:
                axis.plot([scale * difference["low"], scale * difference["high"]], [y, y], color=COLORS[arm])
        axis.axvline(0, color="#888", linewidth=0.8)
        axis.set_title(metric.title, fontsize=8)
        axis.set_yticks(range(len(names)), [ARMS[arm].title for arm in names], fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
    for index in range(len(shown), axes.size):
        axes.flat[index].set_visible(False)
    figure.supxlabel("better than flow matching by, % of its mean (95 % interval over seeds)", fontsize=8)
    return figure


def _by_noise(results: list[Result], summary: dict[str, Any]) -> Figure:
    """Error of Self-Flow over plain flow matching's of the same seed, by noise level: the mean over seeds and
    its 95 % interval."""
    figure = Figure(figsize=(4.4 * len(summary), 3.2), layout="constrained")
    axes = figure.subplots(1, len(summary), squeeze=False)
    for axis, size in zip(axes[0], summary, strict=True):
        ours, plain = compared(results, size, SELF_FLOW), compared(results, size, PLAIN)
        for modality, color in (("video", "#2f6fdb"), ("audio", "#e08a1e")):
            ratios_SB = [
                np.divide(ours[seed]["error_by_t"][modality], plain[seed]["error_by_t"][modality])
                for seed in sorted(ours.keys() & plain.keys())
            ]
            if not ratios_SB:
                continue
            found = [interval(of_bin) for of_bin in np.transpose(ratios_SB)]
            label = {"video": "picture", "audio": "sound"}[modality]
            axis.plot(BINS, [one.mean for one in found], color=color, label=label)
            if len(ratios_SB) > 1:
                low, high = [one.low for one in found], [one.high for one in found]
                axis.fill_between(BINS, low, high, color=color, alpha=0.2, linewidth=0)
        axis.axhline(1, color="#888", linewidth=0.8)
        axis.set_title(size)
        axis.set_xlabel("noise level t of every token")
    axes[0, 0].set_ylabel("error, Self-Flow / flow matching")
    axes[0, 0].legend(fontsize=7)
    return figure


def _probes(tier: Tier, results: list[Result], summary: dict[str, Any]) -> Figure:
    """Scores of linear probes by layer, means over seeds, of the first size."""
    size = next(iter(summary))
    factors = next(list(result["probes"]) for result in results if "probes" in result)
    figure = Figure(figsize=(3.2 * len(factors), 3.2), layout="constrained")
    axes = figure.subplots(1, len(factors), squeeze=False)
    for axis, factor in zip(axes[0], factors, strict=True):
        for arm in summary[size]:
            scores = [run["probes"][factor][PROBED_T] for run in compared(results, size, arm).values()]
            means = [sum(layer) / len(layer) for layer in zip(*scores, strict=True)]
            wide = 1.8 if arm in (PLAIN, SELF_FLOW) else 1.0
            axis.plot(
                range(len(means)),
                means,
                "o-",
                color=COLORS[arm],
                linewidth=wide,
                markersize=3,
                label=ARMS[arm].title,
            )
        axis.axvline(student_layer(tier, size), color="#888", linewidth=0.8, linestyle=":")
        axis.set_title(f"{factor} at t={PROBED_T}", fontsize=9)
        axis.set_xlabel("layer (0: noisy latents)")
    axes[0, 0].set_ylabel("R² or balanced accuracy")
    axes[0, -1].legend(fontsize=6)
    return figure


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
